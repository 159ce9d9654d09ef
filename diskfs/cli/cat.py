"""`diskfs cat`."""

import argparse
import signal
import sys

from diskfs.cli import exit_codes
from diskfs.cli.options import add_disk, add_source, size
from diskfs.cli.output import output_is_closed, print_error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_source(parser)
    add_disk(parser)
    parser.add_argument("--offset", type=size, default=0, metavar="BYTES", help="start here (default 0)")
    parser.add_argument("--length", type=size, metavar="BYTES", help="stop after this many bytes (default: the rest)")


def run(options: argparse.Namespace) -> int:
    """Write the raw bytes of a disk or partition to standard output."""
    if output_is_closed():
        print_error("standard output is closed; redirect it to a file or a pipe")
        return exit_codes.USAGE
    if sys.stdout.isatty():
        print_error("standard output is a terminal; redirect it to a file or a pipe")
        return exit_codes.USAGE
    from diskfs.allocator import keep_freed_buffers
    from diskfs.cli.selection import open_from, select
    from diskfs.convert.copy import copy_disk
    from diskfs.disks.partitions import DiskSlice
    from diskfs.sinks.pipe import PipeSink
    from diskfs_formats.writer import no_progress

    keep_freed_buffers()

    # A reader that has seen enough ends this command as it ends cat(1): silently, by SIGPIPE.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    with open_from(options) as opened:
        image = select(opened, options.disk, options.partition)
        length = max(image.size - options.offset, 0) if options.length is None else options.length
        part = DiskSlice(image, options.offset, length, image.name)
        copy_disk(part, PipeSink(sys.stdout.fileno(), "standard output"), no_progress)
    return exit_codes.DONE
