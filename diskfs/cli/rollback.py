"""`diskfs rollback`."""

import argparse
import sys

from diskfs.cli import exit_codes
from diskfs.cli.output import print_error, print_line
from diskfs.cli.overlays import add_overlay
from diskfs_formats.text import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_overlay(parser)
    parser.add_argument("--yes", action="store_true", help="do not ask")


def run(options: argparse.Namespace) -> int:
    """Drop an overlay and every change in it, after asking."""
    from diskfs.disks.overlay import OverlayFolder
    from diskfs.errors import DamagedOverlay

    # What is no overlay is refused before anybody is asked; a damaged one can be dropped like any other.
    try:
        location = OverlayFolder.inspect(options.overlay).location
    except DamagedOverlay as error:
        print_error(str(error))
        location = "a source whose name is lost"
    shown = printable(str(options.overlay))
    if not options.yes:
        if not sys.stdin.isatty():
            print_error(f"{shown}: dropping every change needs a yes: say --yes where there is no terminal to ask at")
            return exit_codes.USAGE
        sys.stderr.write(f"Drop every change of {printable(location)} in {shown}? This cannot be undone. [y/N] ")
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            print_error(f"{shown}: nothing was dropped")
            return exit_codes.FAILED
    OverlayFolder.remove(options.overlay)
    if not options.quiet:
        print_line(f"{options.overlay}: every change was dropped; {location} is as it was")
    return exit_codes.DONE
