"""The parent of a differencing disk: the names it may have, and whether a disk is the one that is meant.

Specification: Microsoft, Virtual Hard Disk Image Format Specification 1.0 (2006), "Parent Locator Entries".
"""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from urllib.parse import unquote

from diskfs_formats.driver import AbsentParent, RelatedFiles
from diskfs_formats.errors import CorruptImage, ParentUnavailable
from diskfs_formats.findings import Finding, Severity
from diskfs_formats.source import ByteSource
from diskfs_formats.vhd.footer import Footer
from diskfs_formats.vhd.header import DynamicHeader, ParentLocator
from diskfs_formats.vhd.image import VhdImage

MAX_LOCATOR_DATA = 64 << 10
"""Bytes of one locator's path; Windows takes paths of at most 32767 characters."""
MAX_NAME = 255
"""Bytes of a file name on every file system in use."""
EPOCH = 946_684_800
"""2000-01-01 00:00 UTC, from which VHD counts seconds, in Unix time."""

_ENCODINGS = {
    b"W2ru": "utf-16-le",  # relative to the child
    b"W2ku": "utf-16-le",  # absolute
    b"Wi2r": "cp1252",  # deprecated; in the code page of its host, of which this is the most common
    b"Wi2k": "cp1252",
    b"MacX": "utf-8",  # a file: URL
}
"""The platform codes that hold a path, in the order in which they are tried; "Mac " is an opaque alias."""
_DRIVES = re.compile(r"^(?:[A-Za-z]:)+")


def open_parent(
    source: ByteSource, related: RelatedFiles, footer: Footer, header: DynamicHeader, findings: list[Finding]
) -> VhdImage | AbsentParent:
    """Open the parent of the differencing disk `source` and make sure that it is the right one.

    Only bare names reach `related`, never the paths that the image holds. Raises ParentUnavailable, CorruptImage for
    a disk that is its own parent, and what `related` raises.
    """
    if header.parent_unique_id == footer.unique_id:
        raise CorruptImage(f"{source.name}: the differencing disk names itself, {footer.unique_id}, as its parent")
    parent = related.open_parent(parent_names(source, header, findings), "vhd")
    if isinstance(parent, AbsentParent):
        return parent
    try:
        if not isinstance(parent, VhdImage):
            raise ParentUnavailable(f"{source.name}: its parent {parent.name} is no VHD")
        found = parent.footer
        if found.unique_id != header.parent_unique_id:
            raise ParentUnavailable(
                f"{source.name}: {parent.name} is not its parent: the unique id is {found.unique_id}, expected "
                f"{header.parent_unique_id}"
            )
    except BaseException:
        parent.close()
        raise
    # The field is the parent's modification time when the child was made, or 0. No copy of a file keeps that time;
    # what its footer says was the same then or, if the parent was not touched since, earlier.
    if 0 < header.parent_timestamp < found.timestamp:
        findings.append(
            Finding(
                "vhd-parent-changed",
                Severity.WARNING,
                f"{source.name}: it was made over a parent of {_date(header.parent_timestamp)}, and the footer of "
                f"{parent.name} is of {_date(found.timestamp)}: the parent may have been changed since",
                "if it was, only an older copy of it gives the disk that was meant",
            )
        )
    return parent


def parent_names(source: ByteSource, header: DynamicHeader, findings: list[Finding]) -> list[str]:
    """Return the bare file names that the parent may have, likeliest first.

    Paths are reduced to their last component, whatever their separators; what is no file name is left out.
    """
    names: dict[str, None] = {}
    for path in _paths(source, header, findings):
        name = _bare_name(path)
        if name is not None:
            names[name] = None
    return list(names)


def _paths(source: ByteSource, header: DynamicHeader, findings: list[Finding]) -> Iterator[str]:
    located = []
    for number, locator in enumerate(header.parent_locators):
        code = locator.platform_code
        if code in _ENCODINGS:
            path = _located_path(source, number, locator, findings)
            if path is not None:
                located.append((list(_ENCODINGS).index(code), path))
    for _, path in sorted(located, key=lambda pair: pair[0]):
        yield path
    try:
        yield _decoded(header.parent_unicode_name, "utf-16-be")
    except UnicodeDecodeError:
        findings.append(_unreadable(source, "the parent unicode name is not UTF-16"))


def _located_path(source: ByteSource, number: int, locator: ParentLocator, findings: list[Finding]) -> str | None:
    """Return the path that a locator leads to, or None, with a finding, if it leads to none."""
    title = f"parent locator {number} ({locator.platform_code.decode()})"
    offset, length = locator.data_offset, locator.data_length
    if not 0 < length <= MAX_LOCATOR_DATA:
        findings.append(_unreadable(source, f"{title} is {length} bytes long, expected 1 to {MAX_LOCATOR_DATA}"))
        return None
    if offset + length > source.size:
        findings.append(
            _unreadable(source, f"{title} at offset {offset:#x} is {length} bytes long, the file ends before that")
        )
        return None
    encoding = _ENCODINGS[locator.platform_code]
    try:
        path = _decoded(source.read_at(offset, length), encoding)
        return unquote(path, errors="strict") if locator.platform_code == b"MacX" else path
    except UnicodeDecodeError:
        findings.append(_unreadable(source, f"{title} at offset {offset:#x} is not text ({encoding})"))
        return None


def _decoded(data: bytes, encoding: str) -> str:
    """Return the text up to the first NUL; the specification has none after it, most programs write one."""
    if encoding.startswith("utf-16"):
        data = data[: len(data) & ~1]
    return data.decode(encoding).partition("\0")[0]


def _bare_name(path: str) -> str | None:
    name = _DRIVES.sub("", re.split(r"[\\/]", path)[-1])
    if name in {"", ".", ".."} or any(ord(character) < 32 for character in name):
        return None
    return name if len(name.encode()) <= MAX_NAME else None


def _unreadable(source: ByteSource, problem: str) -> Finding:
    return Finding("vhd-parent-locator", Severity.WARNING, f"{source.name}: {problem}; it is not used")


def _date(timestamp: int) -> str:
    return datetime.fromtimestamp(EPOCH + timestamp, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
