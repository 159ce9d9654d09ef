"""`diskfs cat`."""

import argparse
import os
import signal
import sys

from diskfs.cli import exit_codes
from diskfs.cli.options import add_disk, add_source, size
from diskfs.cli.output import print_error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_source(parser)
    add_disk(parser)
    parser.add_argument("--offset", type=size, default=0, metavar="BYTES", help="start here (default 0)")
    parser.add_argument("--length", type=size, metavar="BYTES", help="stop after this many bytes (default: the rest)")


def run(options: argparse.Namespace) -> int:
    """Write the raw bytes of a disk or partition to standard output."""
    if sys.stdout.isatty():
        print_error("standard output is a terminal; redirect it to a file or a pipe")
        return exit_codes.USAGE
    from diskfs.cli.selection import open_from, select
    from diskfs.disks.streaming import read_ahead
    from diskfs_formats.source import require_range

    # A reader that has seen enough ends this command as it ends cat(1): silently, by SIGPIPE.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    with open_from(options) as opened:
        image = select(opened, options.disk, options.partition)
        length = image.size - options.offset if options.length is None else options.length
        require_range(image, options.offset, length)
        output = sys.stdout.fileno()
        for piece in read_ahead(image, options.offset, length):
            view = memoryview(piece)
            while view:
                view = view[os.write(output, view) :]
    return exit_codes.DONE
