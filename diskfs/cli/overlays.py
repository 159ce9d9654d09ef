"""Options that the commands on overlays share."""

import argparse
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from diskfs.cli.options import add_remote, location, remote_options

if TYPE_CHECKING:
    from diskfs.disks.reopening import ReopenedOverlay


def add_overlay(parser: argparse.ArgumentParser) -> None:
    """Add OVERLAY."""
    parser.add_argument("overlay", metavar="OVERLAY", type=Path, help="the folder given to mount --overlay")


def add_reopening(parser: argparse.ArgumentParser) -> None:
    """Add OVERLAY and how its source is opened again."""
    add_overlay(parser)
    parser.add_argument(
        "--source", metavar="SOURCE", type=location,
        help="where the overlay's source is now, if it is elsewhere or its URL is signed (default: where it was)",
    )  # fmt: skip
    add_remote(parser)


def reopen(options: argparse.Namespace) -> "AbstractContextManager[ReopenedOverlay]":
    """Open the overlay and its source; raises DiskfsError."""
    from diskfs.disks.reopening import reopened

    return reopened(options.overlay, location=options.source, remote=remote_options(options))
