"""Options that several commands share."""

import argparse
import re

_SIZE = re.compile(r"(\d+)\s*([KMGTPE]?)(?:i?B)?", re.IGNORECASE)


def size(text: str) -> int:
    """Parse a size or offset in bytes, with qemu-img's suffixes: 512, 64K, 1M, 2GiB, 0x200."""
    if text.lower().startswith("0x"):
        try:
            return int(text, 16)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a size") from None
    match = _SIZE.fullmatch(text.strip())
    if match is None or len(match[1]) > 20:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write bytes or a number with K, M, G, T")
    return int(match[1]) << 10 * "_KMGTPE".index(match[2].upper() or "_")


def number(text: str) -> int:
    """Parse a number from 0."""
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return int(text)


def add_source(parser: argparse.ArgumentParser) -> None:
    """Add SOURCE and --format."""
    parser.add_argument("source", metavar="SOURCE", help="an image, an .ova, or an .ovf beside its files")
    parser.add_argument(
        "--format",
        metavar="F",
        help="take SOURCE as this format (raw, vmdk, ova, ovf) instead of looking; needed for a raw disk whose guest "
        "wrote another format's signature",
    )
    parser.add_argument(
        "--parent",
        metavar="FILE",
        action="append",
        default=[],
        help="the parent of a differencing image, where it is not beside it; again for the parent's parent",
    )
    parser.add_argument(
        "--allow-missing-parent", action="store_true", help="read what only a missing parent has as zero"
    )


def add_disk(parser: argparse.ArgumentParser) -> None:
    """Add --disk and --partition."""
    parser.add_argument("--disk", type=number, metavar="N", default=0, help="which disk, from 0 (default 0)")
    parser.add_argument("--partition", type=number, metavar="N", help="which partition, as numbered in its table")


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", help="print one JSON document")
