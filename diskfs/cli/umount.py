"""`diskfs umount`."""

import argparse
from pathlib import Path

from diskfs.cli import exit_codes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "mountpoint", metavar="MOUNTPOINT", type=Path, nargs="+", help="a mount of diskfs, also a stale one"
    )


def run(options: argparse.Namespace) -> int:
    """Unmount and wait until the daemons have ended."""
    from diskfs.mountpoints import unmount

    for mountpoint in options.mountpoint:
        unmount(mountpoint)
    return exit_codes.DONE
