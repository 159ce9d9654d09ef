"""`diskfs umount`."""

import argparse
from pathlib import Path

from diskfs.cli import exit_codes
from diskfs.cli.output import print_error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "mountpoint", metavar="MOUNTPOINT", type=Path, nargs="+", help="a mount of diskfs, also a stale one"
    )


def run(options: argparse.Namespace) -> int:
    """Unmount and wait until the daemons have ended."""
    from diskfs.mountpoints import unmount
    from diskfs_formats.errors import DiskfsError

    code = exit_codes.DONE
    for mountpoint in options.mountpoint:
        try:
            unmount(mountpoint)
        except DiskfsError as error:
            print_error(str(error))
            code = exit_codes.FAILED
    return code
