"""`diskfs mount`."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from diskfs.cli import exit_codes
from diskfs.cli.options import add_source, remote_options
from diskfs.cli.output import print_error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_source(parser)
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", type=Path, help="an empty folder")
    parser.add_argument("--foreground", action="store_true", help="stay, and unmount when interrupted")
    parser.add_argument(
        "--allow-other", action="store_true", help="let other users in, as far as the image's own permissions do"
    )
    writing = parser.add_mutually_exclusive_group()
    writing.add_argument(
        "--overlay", type=Path, metavar="DIR", help="let the disks be written to; every change is kept in DIR, and "
        "SOURCE stays as it is (DIR is made if it is not there, and used again if it is)",
    )  # fmt: skip
    writing.add_argument(
        "--read-write", action="store_true", help="write to SOURCE itself: a local raw image or a block device, which "
        "is locked against others meanwhile",
    )  # fmt: skip
    parser.add_argument(
        "-o", dest="options", metavar="OPT[,OPT...]", action="append", default=[], help="options of mount(8)"
    )
    parser.add_argument("--log-file", type=Path, metavar="FILE", help="log there (default: the system's log)")


def run(options: argparse.Namespace) -> int:
    """Mount; returns when the files are there or, in the foreground, when the mount has ended."""
    from diskfs.mountpoints import claimed, prepare

    mountpoint = prepare(options.mountpoint)
    if options.log_file is not None:
        options.log_file = options.log_file.absolute()
    if options.overlay is not None:
        options.overlay = options.overlay.absolute()
    if options.foreground:
        return _serve(options, mountpoint, lambda warnings: _warn(options, warnings))
    with claimed(mountpoint) as claim:
        # Another command may have mounted here before the claim.
        return _serve_in_background(options, prepare(mountpoint), claim)


def _serve(options: argparse.Namespace, mountpoint: Path, ready: Callable[[list[str]], None]) -> int:
    from diskfs.fuse.changing import Changes
    from diskfs.fuse.mount import MountOptions, log_handler, serve, set_up_logging

    set_up_logging(log_handler(options.log_file, background=not options.foreground), verbose=options.verbose)
    extra = tuple(word for group in options.options for word in group.split(",") if word)
    allow_other = options.allow_other or "allow_other" in extra
    mount_options = MountOptions(
        options.format,
        tuple(options.parent),
        options.allow_missing_parent,
        allow_other,
        extra,
        remote_options(options),
        Changes(options.overlay, options.read_write),
    )
    serve(options.source, mountpoint, mount_options, ready)
    return exit_codes.DONE


def _serve_in_background(options: argparse.Namespace, mountpoint: Path, claim: int) -> int:
    """Fork the daemon, wait for its word through a pipe, and pass it on."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    # Forked before anything has started a thread; the daemon opens the source itself.
    if os.fork() == 0:
        os.close(reading)
        os.close(claim)
        _be_daemon(options, mountpoint, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        word = pipe.read()
    if not word:
        print_error("the mount's process ended before the mount was ready")
        return exit_codes.FAILED
    answer = json.loads(word)
    if "error" in answer:
        print_error(answer["error"])
        return exit_codes.FAILED
    _warn(options, answer["warnings"])
    return exit_codes.DONE


def _be_daemon(options: argparse.Namespace, mountpoint: Path, writing: int) -> NoReturn:
    """Serve in a session of its own, without standard streams once the mount is ready."""
    from diskfs_formats.errors import DiskfsError

    code = exit_codes.FAILED
    told = False

    def tell(answer: dict[str, object]) -> None:
        nonlocal told
        if not told:
            told = True
            os.write(writing, json.dumps(answer).encode())
            os.close(writing)

    def ready(warnings: list[str]) -> None:
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        os.close(null)
        tell({"warnings": warnings})

    try:
        os.setsid()
        code = _serve(options, mountpoint, ready)
    except DiskfsError as error:
        tell({"error": str(error)})
    except OSError as error:
        tell({"error": f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)})
    except BaseException as error:
        import logging

        logging.getLogger("diskfs").critical("the mount failed", exc_info=error)
        tell({"error": f"the mount failed: {type(error).__name__}: {error}"})
    finally:
        os._exit(code)


def _warn(options: argparse.Namespace, warnings: list[str]) -> None:
    if options.read_write:
        # Said also with --quiet: whoever meant --overlay must learn it before he writes.
        print_error(f"{options.source}: the image itself is written to")
    if not options.quiet:
        for warning in warnings:
            print_error(f"not mounted: {warning}")
