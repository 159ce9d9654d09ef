"""`diskfs compare`."""

import argparse
import os
import signal
from typing import TYPE_CHECKING

from diskfs.cli import exit_codes
from diskfs.cli.options import add_json, add_remote, location, number, remote_options
from diskfs.cli.output import print_error, print_json, print_line

if TYPE_CHECKING:
    from diskfs_formats.driver import DiskImage

DIFFERENT = 1
TROUBLE = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.epilog = (
        "Of disks of different sizes, the longer one must go on with zeroes to be the same. "
        "Exit codes, as of cmp: 0 same, 1 different, 2 trouble."
    )
    for name in ("a", "b"):
        parser.add_argument(
            name,
            metavar=name.upper(),
            type=location,
            help="an image, an .ova, or an .ovf beside its files: path or URL",
        )
    for name in ("a", "b"):
        parser.add_argument(f"--format-{name}", metavar="F", help=f"take {name.upper()} as this format")
        parser.add_argument(
            f"--disk-{name}", type=number, metavar="N", default=0, help=f"which disk of {name.upper()} (default 0)"
        )
        parser.add_argument(
            f"--parent-{name}",
            metavar="FILE",
            type=location,
            action="append",
            default=[],
            help=f"the parent of {name.upper()}",
        )
    parser.add_argument("--strict", action="store_true", help="disks of different sizes are different")
    add_remote(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Say whether two disks have the same content and, if not, where they begin to differ."""
    from diskfs.allocator import keep_freed_buffers
    from diskfs_formats.errors import DiskfsError

    keep_freed_buffers()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        return _run(options)
    except DiskfsError as error:
        print_error(str(error))
    except BrokenPipeError:
        raise
    except OSError as error:
        print_error(f"{error.filename or 'comparing'}: {error.strerror or os.strerror(error.errno or 0)}")
    return TROUBLE


def _run(options: argparse.Namespace) -> int:
    from diskfs.cli.progress import ProgressBars
    from diskfs.convert.compare import first_difference
    from diskfs.disks.opening import open_source

    remote = remote_options(options)
    with (
        open_source(options.a, format_name=options.format_a, parents=options.parent_a, remote=remote) as source_a,
        open_source(options.b, format_name=options.format_b, parents=options.parent_b, remote=remote) as source_b,
    ):
        one, other = source_a.disk(options.disk_a).image, source_b.disk(options.disk_b).image
        offset: int | None
        if options.strict and one.size != other.size:
            offset = min(one.size, other.size)
        else:
            with ProgressBars(options)("comparing", max(one.size, other.size)) as progress:
                offset = first_difference(one, other, progress)
        _report(options, one, other, offset)
    return exit_codes.DONE if offset is None else DIFFERENT


def _report(options: argparse.Namespace, one: "DiskImage", other: "DiskImage", offset: int | None) -> None:
    if options.json:
        print_json(
            {
                "a": options.a,
                "b": options.b,
                "same": offset is None,
                "first_difference": offset,
                "virtual_size_a": one.size,
                "virtual_size_b": other.size,
            }
        )
        return
    if one.size != other.size and not options.quiet:
        print_error(f"the disks have different sizes: {one.size} and {other.size} bytes")
    if offset is not None:
        print_line(f"{options.a} {options.b} differ: offset {offset} ({offset:#x})")
