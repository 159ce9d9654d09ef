"""`diskfs`: parses the command line, runs the command, and turns errors into exit codes."""

import argparse
import contextlib
import gc
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from diskfs.cli import exit_codes
from diskfs.cli.deferred import defer
from diskfs.cli.output import print_error

COMMANDS = {
    "mount": "mount an image or appliance: every disk and partition as a raw file",
    "umount": "unmount, and say who keeps the mount busy if it cannot be",
    "mounts": "list active and stale mounts",
    "info": "format, variant, disks, partitions, file systems",
    "map": "what is stored where, compatible with qemu-img map",
    "cat": "write the raw bytes of a disk or partition to standard output",
    "convert": "write an image in another format: a file, a pipe or a device, all of it or nothing",
    "compare": "tell whether two images have the same content; exit code 1 if not",
    "verify": "check the structure, every compressed grain, and the manifest",
    "diff": "list what an overlay changes, by partition",
    "commit": "write the disk with an overlay's changes as a new image, in any format",
    "rollback": "drop an overlay and every change in it",
    "overlay-check": "examine an overlay; exit code 3 if it is damaged",
    "preflight": "tell whether AWS VM Import takes an image, rule by rule, and what to do if not",
    "explain": "explain an error message of AWS VM Import/Export, or one of its rules",
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
            import_module(_module(name)).add_arguments(command)
    return parser


def _module(command: str) -> str:
    return f"diskfs.cli.{command.replace('-', '_')}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    _start_quickly()
    _prepare_process()
    try:
        return _main(given)
    except KeyboardInterrupt:
        return exit_codes.INTERRUPTED


def _start_quickly() -> None:
    """Make loading modules cheap: docs/decisions/0010-starting-quickly.md."""
    # Loading makes tens of thousands of objects that stay; looking for garbage among them every 700 took a quarter of
    # the time of `diskfs info`.
    gc.set_threshold(50_000, 20, 20)
    # construct loads both, for a debugger and a digest that we have no use for.
    defer("pdb", "hashlib")


def _prepare_process() -> None:
    """Make sure of what the rest relies on: three open standard streams, and output that any name can be written to."""
    # Else the image would get a standard stream's number, and lose it to whoever redirects that stream.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r+", encoding="utf-8"))  # noqa: SIM115, PTH123 - for good
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _main(given: list[str]) -> int:
    chosen = next((word for word in given if word in COMMANDS), None)
    parser = build_parser(chosen)
    options = parser.parse_args(given)
    if options.command is None and not options.version:
        parser.print_help(sys.stderr)
        return exit_codes.USAGE
    return _run(options)


def _run(options: argparse.Namespace) -> int:
    from diskfs_formats.errors import DiskfsError

    try:
        code = _print_version() if options.version else _run_command(options)
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
    except Exception as error:  # noqa: BLE001 - a bug of ours; whoever meets it needs one line, and we the place
        print_error(f"this is a bug in diskfs: {type(error).__name__}: {error} ({_place(error)})")
        return exit_codes.FAILED
    return code


def _print_version() -> int:
    from importlib.metadata import version

    sys.stdout.write(f"diskfs {version('diskfs')}\n")
    return exit_codes.DONE


def _run_command(options: argparse.Namespace) -> int:
    import resource

    # Appliances in many chunks and disks in many files keep each of them open.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        code: int = import_module(_module(options.command)).run(options)
    finally:
        if options.verbose:
            _tell_statistics()
    return code


def _tell_statistics() -> None:
    """Say what reading remote sources has cost, if there were any."""
    if statistics := sys.modules.get("diskfs.sources.statistics"):
        counts = statistics.STATISTICS.counted()
        if counts["requests"]:
            text = (
                "{requests} requests ({retries} of them repeated), {bytes_fetched} bytes fetched, "
                "{cache_hits} blocks found in memory and {stored_hits} in the cache"
            )
            print_error(text.format(**counts))


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "unknown place"


if __name__ == "__main__":
    sys.exit(main())
