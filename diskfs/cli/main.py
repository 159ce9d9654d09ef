"""`diskfs`: parses the command line, runs the command, and turns errors into exit codes."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from diskfs.cli import exit_codes
from diskfs.cli.output import print_error

COMMANDS = {
    "mount": "mount an image or appliance: every disk and partition as a raw file",
    "umount": "unmount, and say who keeps the mount busy if it cannot be",
    "mounts": "list active and stale mounts",
    "info": "format, variant, disks, partitions, file systems",
    "map": "what is stored where, compatible with qemu-img map",
    "cat": "write the raw bytes of a disk or partition to standard output",
    "verify": "check the structure, every compressed grain, and the manifest",
}


def build_parser(chosen: str | None = None) -> argparse.ArgumentParser:
    """Return the parser; only the options of the command `chosen` are filled in, which keeps starting quick."""
    parser = argparse.ArgumentParser(
        prog="diskfs",
        description="Virtual machine disks and appliances as raw files, without unpacking them.",
        epilog="diskfs COMMAND --help says more. Exit codes: 0 done, 1 failed, 2 usage, 3 the answer is no, "
        "130 interrupted.",
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    # With `prog` given argparse need not format a usage line, for which it would load shutil.
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands", prog="diskfs")
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        command.add_argument("--quiet", action="store_true", help="no warnings, no progress")
        command.add_argument("--verbose", action="store_true", help="say more")
        if name == chosen:
            import_module(f"diskfs.cli.{name}").add_arguments(command)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    chosen = next((word for word in given if word in COMMANDS), None)
    parser = build_parser(chosen)
    options = parser.parse_args(given)
    if options.version:
        from importlib.metadata import version

        sys.stdout.write(f"diskfs {version('diskfs')}\n")
        return exit_codes.DONE
    if options.command is None:
        parser.print_help(sys.stderr)
        return exit_codes.USAGE
    return _run(options)


def _run(options: argparse.Namespace) -> int:
    from diskfs_formats.errors import DiskfsError

    try:
        code: int = import_module(f"diskfs.cli.{options.command}").run(options)
        sys.stdout.flush()
    except DiskfsError as error:
        print_error(str(error))
        return exit_codes.FAILED
    except KeyboardInterrupt:
        return exit_codes.INTERRUPTED
    except BrokenPipeError:
        # The reader has what it wanted. The interpreter must not try to flush into the closed pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exit_codes.FAILED
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print_error(f"{where}{error.strerror or error}")
        return exit_codes.FAILED
    except MemoryError:
        print_error("out of memory")
        return exit_codes.FAILED
    return code


if __name__ == "__main__":
    sys.exit(main())
