"""Options that several commands share."""

import argparse
import re
import sys
from pathlib import Path

from diskfs.sources.locations import DEFAULT_CACHE_SIZE, DEFAULT_DEADLINE, Location, RemoteOptions, is_url

_SIZE = re.compile(r"(\d+)\s*([KMGTPE]?)(?:i?B)?", re.IGNORECASE)


MAX_URL = 16384
"""Characters of a URL; signed ones have a few thousand."""


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


def seconds(text: str) -> float:
    """Parse a number of seconds above 0."""
    return float(number(text)) or 1.0


def location(text: str) -> Location:
    """Parse a source: a path, a URL, or `@FILE` for a URL in a file (`@-`: on standard input), unseen by others."""
    if text.startswith("@") and (text == "@-" or not Path(text).exists()):
        text = _location_in(text[1:])
    if is_url(text):
        hide_from_process_list(text)
    return Location(text)


def _location_in(file_name: str) -> str:
    try:
        text = (
            sys.stdin.readline(MAX_URL) if file_name == "-" else Path(file_name).read_text(encoding="utf-8")[:MAX_URL]
        )
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise argparse.ArgumentTypeError(f"@{file_name}: the location cannot be read from there: {reason}") from None
    if not text.strip():
        raise argparse.ArgumentTypeError(f"@{file_name}: there is no location in it")
    return text.strip().splitlines()[0]


def hide_from_process_list(url: str) -> None:
    """Blank out user, password and query of a URL in this process's command line, which `ps` shows to everybody."""
    secret = url.encode("utf-8", "surrogateescape")
    public = Location(url).encode("utf-8", "surrogateescape")
    if secret == public:
        return
    try:
        fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
        start, end = int(fields[45]), int(fields[46])
        with open("/proc/self/mem", "r+b", buffering=0) as memory:  # noqa: PTH123 - as for any file of /proc
            memory.seek(start)
            arguments = memory.read(end - start)
            position = arguments.find(secret)
            while position >= 0:
                memory.seek(start + position)
                memory.write(public.ljust(len(secret), b"\0")[: len(secret)])
                position = arguments.find(secret, position + 1)
    except (OSError, ValueError, IndexError):
        # Not every system lets a process do that. README says how to keep a URL out of the command line.
        return


def add_source(parser: argparse.ArgumentParser, *, is_optional: bool = False) -> None:
    """Add SOURCE and --format."""
    parser.add_argument(
        "source",
        metavar="SOURCE",
        nargs="?" if is_optional else None,
        type=location,
        help="an image, an .ova, or an .ovf beside its files: a path, s3://BUCKET/KEY, an http(s):// URL, or @FILE "
        "with the URL in FILE",
    )
    parser.add_argument(
        "--format",
        metavar="F",
        help="take SOURCE as this format (raw, vmdk, ova, ovf) instead of looking; needed for a raw disk whose guest "
        "wrote another format's signature",
    )
    parser.add_argument(
        "--parent",
        metavar="FILE",
        type=location,
        action="append",
        default=[],
        help="the parent of a differencing image, where it is not beside it; again for the parent's parent",
    )
    parser.add_argument(
        "--allow-missing-parent", action="store_true", help="read what only a missing parent has as zero"
    )
    add_remote(parser)


def add_remote(parser: argparse.ArgumentParser) -> None:
    """Add the options of sources that are not local."""
    group = parser.add_argument_group("sources in S3 and behind URLs")
    group.add_argument("--endpoint-url", metavar="URL", help="the S3 service (default: AWS, or as boto3 is configured)")
    group.add_argument("--region", metavar="NAME", help="the bucket's region")
    group.add_argument(
        "--profile", metavar="NAME", help="the profile of the AWS configuration that has the credentials"
    )
    group.add_argument("--no-sign-request", action="store_true", help="use no credentials: for public buckets")
    group.add_argument(
        "--request-payer", nargs="?", const="requester", choices=["requester"], help="agree to pay for the requests"
    )
    group.add_argument("--spool", action="store_true", help="copy a file first whose server cannot send parts of it")
    group.add_argument(
        "--allow-private", action="store_true", help="let a host name in a URL lead to an address that is not public"
    )
    group.add_argument("--cache", metavar="DIR", type=Path, help="keep what was fetched there, for the next time")
    group.add_argument(
        "--cache-size", metavar="BYTES", type=size, default=DEFAULT_CACHE_SIZE, help="of --cache (default 10G)"
    )
    group.add_argument(
        "--timeout", metavar="SECONDS", type=seconds, default=DEFAULT_DEADLINE,
        help="give up a read that got nothing for so long (default 60)",
    )  # fmt: skip


def remote_options(options: argparse.Namespace) -> RemoteOptions:
    """Return what the options of `add_remote` say; of a command that has none of them, what holds without."""
    if not hasattr(options, "endpoint_url"):
        return RemoteOptions()
    return RemoteOptions(
        endpoint_url=options.endpoint_url,
        region=options.region,
        profile=options.profile,
        sign=not options.no_sign_request,
        requester_pays=options.request_payer is not None,
        spool=options.spool,
        allow_private=options.allow_private,
        cache_folder=None if options.cache is None else options.cache.absolute(),
        cache_size=options.cache_size,
        deadline=options.timeout,
    )


def add_disk(parser: argparse.ArgumentParser) -> None:
    """Add --disk and --partition."""
    parser.add_argument("--disk", type=number, metavar="N", default=0, help="which disk, from 0 (default 0)")
    parser.add_argument("--partition", type=number, metavar="N", help="which partition, as numbered in its table")


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", help="print one JSON document")
