"""`diskfs convert`."""

import argparse
import signal
import sys
from pathlib import PurePath
from typing import TYPE_CHECKING

from diskfs.cli import exit_codes
from diskfs.cli.options import add_json, add_source, number, remote_options
from diskfs.cli.output import human_size, output_is_closed, print_error, print_json, print_line

if TYPE_CHECKING:
    from diskfs.convert.job import Summary
    from diskfs.disks.opening import OpenedSource

FORMATS = ("raw", "vmdk", "vhd", "vhdx", "ova")
SUFFIXES = {".raw": "raw", ".img": "raw", ".vmdk": "vmdk", ".vhd": "vhd", ".vhdx": "vhdx", ".ova": "ova"}
MAX_THREADS = 512
LEVELS = range(1, 13)
VHD_SECTOR = 512


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_source(parser)
    add_target(parser)
    add_json(parser)


def add_target(parser: argparse.ArgumentParser) -> None:
    """Add TARGET and how it is written."""
    parser.add_argument(
        "target", metavar="TARGET", help="a file, a block device, s3://BUCKET/KEY, or - for standard output"
    )
    parser.add_argument(
        "-O", dest="output_format", metavar="FORMAT", choices=FORMATS,
        help=f"the format to write: {', '.join(FORMATS)} (default: what TARGET's name ends with)",
    )  # fmt: skip
    parser.add_argument(
        "--variant",
        metavar="V",
        default="",
        help="vmdk: streamOptimized, monolithicSparse, monolithicFlat; vhd, vhdx: dynamic, fixed (default: the first)",
    )
    parser.add_argument(
        "--disk", type=number, metavar="N", help="which disk, from 0 (default 0; for ova, all of an appliance's)"
    )
    parser.add_argument("--partition", type=number, metavar="N", help="this partition alone, as numbered in its table")
    parser.add_argument("--threads", type=number, metavar="N", help="threads that work (default: one per core)")
    parser.add_argument(
        "--level", type=number, metavar="N", help="compression from 1 (fast) to 12 (small); without it, grains that "
        "are compressed already are taken as they are",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="replace TARGET if it exists; write to a block device")
    parser.add_argument("--verify", action="store_true", help="read back what was written and compare it with SOURCE")
    parser.add_argument("--reproducible", action="store_true", help="two runs write the same bytes")
    parser.add_argument("--azure", action="store_true", help="vhd: round the size up to a whole MiB, as Azure asks")


def run(options: argparse.Namespace) -> int:
    """Write a disk, or an appliance, in another format."""
    problem = usage_problem(options)
    if problem:
        print_error(problem)
        return exit_codes.USAGE
    from diskfs.cli.selection import open_from

    with open_from(options) as opened:
        return write_target(options, opened)


def write_target(options: argparse.Namespace, opened: "OpenedSource") -> int:
    """Write what is opened as the options of `add_target` say, and report it; raises DiskfsError."""
    from diskfs.allocator import keep_freed_buffers
    from diskfs.cli.progress import ProgressBars
    from diskfs.cli.selection import select
    from diskfs.convert.job import Job, convert_disk
    from diskfs.sinks.opening import STANDARD_OUTPUT
    from diskfs_formats.writer import WriteOptions

    keep_freed_buffers()
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    to_output = options.target == STANDARD_OUTPUT
    write_options = WriteOptions(
        variant=options.variant,
        file_name="disk.vmdk" if to_output else PurePath(options.target).name,
        level=options.level,
        threads=options.threads,
        reproducible=options.reproducible,
        azure=options.azure,
    )
    job = Job(options.target, _format(options), write_options, options.force, options.verify, remote_options(options))
    bars = ProgressBars(options)
    if job.format == "ova":
        from diskfs.convert.appliance import convert_appliance, kept_descriptor

        if opened.appliance is not None and options.disk is None and options.partition is None:
            opened.require_a_disk()
            images = [disk.image for disk in opened.disks]
            summary = convert_appliance(images, job, bars, kept_descriptor(opened.appliance, len(images)))
        else:
            summary = convert_appliance([select(opened, options.disk or 0, options.partition)], job, bars)
    else:
        disk = select(opened, options.disk or 0, options.partition)
        _warn_of_sectors(options, job.format, disk.info.sector_size)
        summary = convert_disk(disk, job, bars)
    _report(options, job.format, summary, to_output=to_output)
    return exit_codes.DONE


def _interrupt(_number: int, _frame: object) -> None:
    """End as Ctrl-C does: with the target as it was."""
    raise KeyboardInterrupt


def _format(options: argparse.Namespace) -> str:
    return options.output_format or SUFFIXES.get(PurePath(options.target).suffix.lower(), "")


def usage_problem(options: argparse.Namespace) -> str | None:
    """Say what is wrong with the options, or None."""
    name = _format(options)
    if not name:
        return f"{options.target}: its name does not tell the format to write; say it with -O: {', '.join(FORMATS)}"
    if options.target == "-":
        if output_is_closed():
            return "standard output is closed; redirect it to a file or a pipe"
        if sys.stdout.isatty():
            return "standard output is a terminal; redirect it to a file or a pipe"
        if options.verify:
            return "--verify cannot read back what went into a pipe; leave it out, or write a file"
        if options.json:
            return "--json and the image cannot both go to standard output"
    if options.threads is not None and not 1 <= options.threads <= MAX_THREADS:
        return f"--threads {options.threads}: expected 1 to {MAX_THREADS}"
    if options.level is not None and options.level not in LEVELS:
        return f"--level {options.level}: expected {LEVELS.start} to {LEVELS.stop - 1}"
    return _misplaced(options, name)


def _misplaced(options: argparse.Namespace, name: str) -> str | None:
    """Say which option the format has no use for, or None."""
    from diskfs_formats.registry import writable_variants

    variants = ("streamOptimized",) if name == "ova" else writable_variants(name)
    if options.variant and options.variant not in variants:
        return f"--variant {options.variant}: {name} is written as {', '.join(variants)}"
    compressed = name == "ova" or (name == "vmdk" and (options.variant or variants[0]) == "streamOptimized")
    if options.level is not None and not compressed:
        return (
            f"--level is for what is compressed (vmdk streamOptimized, ova), not for {name} {options.variant}".rstrip()
        )
    if options.azure and name != "vhd":
        return f"--azure is for vhd, not for {name}"
    return None


def _warn_of_sectors(options: argparse.Namespace, name: str, sector_size: int) -> None:
    """Say what a whole disk loses in a format that cannot state its sector size; its bytes are all written."""
    if name == "vhd" and sector_size != VHD_SECTOR and options.partition is None and not options.quiet:
        print_error(
            f"warning: {options.source}: its sectors have {sector_size} bytes, which a VHD cannot say: whoever opens "
            f"{options.target} counts in {VHD_SECTOR} bytes and does not find the partitions; vhdx keeps it"
        )


def _report(options: argparse.Namespace, name: str, summary: "Summary", *, to_output: bool) -> None:
    if options.json:
        print_json(
            {
                "source": options.source,
                "target": options.target,
                "format": name,
                "variant": summary.variant,
                "virtual_size": summary.virtual_size,
                "file_size": summary.file_size,
                "bytes_read": summary.read,
                "bytes_written": summary.written,
                "bytes_skipped": summary.skipped,
                "seconds": round(summary.seconds, 3),
                "ratio": None if summary.ratio is None else round(summary.ratio, 4),
                "verified": summary.verified,
                **({} if summary.upload is None else {"upload": summary.upload}),
            }
        )
    elif not options.quiet and not to_output:
        verified = ", read back and verified" if summary.verified else ""
        upload = summary.upload
        sent = f", {upload['requests']} requests ({upload['retries']} of them repeated)" if upload else ""
        print_line(
            f"{options.target}: {name} {summary.variant}, {human_size(summary.read)} of data in "
            f"{human_size(summary.written)} written, {summary.seconds:.1f} s{sent}{verified}"
        )
