"""The parent locator: which disk a differencing disk is a child of, and where it may be.

Specification: [MS-VHDX] 8.0, section 2.6.2.6. The parent is known by the DataWriteGuid of its current header.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

from diskfs_formats.binary import parse_structure
from diskfs_formats.errors import CorruptImage, UnsupportedFeature
from diskfs_formats.source import ByteSource
from diskfs_formats.text import printable
from diskfs_formats.vhdx.structures import (
    NO_GUID,
    PARENT_LOCATOR_ENTRY,
    PARENT_LOCATOR_HEADER,
    VHDX_LOCATOR_TYPE,
    guid,
)

MAX_KEYS = 256
"""Entries of a locator; five keys are defined."""
LINKAGES = ("parent_linkage", "parent_linkage2")
"""The second means something only while a merge is under way: then the parent has one of two identities."""
PATHS = ("relative_path", "volume_path", "absolute_win32_path")
"""In the order in which the specification tries them."""
_GUID_TEXT = re.compile(r"\{?([0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12})\}?")
MAX_NAME = 255
"""Bytes of a file name on every file system in use."""
_PATH_PREFIX = re.compile(r".*[\\/]|(?:[A-Za-z]:)+", re.DOTALL)
"""Folders, or the drive of a path without any."""


@dataclass(frozen=True, slots=True)
class ParentLocator:
    """The parent's possible identities, and its possible names without their folders, most likely first.

    A path leads through a folder tree that only the writer had; the identity tells whether a file found by its name
    alone is the right one.
    """

    linkages: tuple[UUID, ...]
    file_names: tuple[str, ...]


def read_parent_locator(item: ByteSource) -> ParentLocator:
    """Read a parent locator item; raises CorruptImage, UnsupportedFeature for a parent that is no VHDX."""
    raw = parse_structure(PARENT_LOCATOR_HEADER, item, 0, "VHDX parent locator")
    locator_type = guid(raw.LocatorType)
    if locator_type != VHDX_LOCATOR_TYPE:
        raise UnsupportedFeature(
            f"{item.name}: the parent is of type {locator_type}, only VHDX parents ({VHDX_LOCATOR_TYPE}) are read"
        )
    if raw.KeyValueCount > MAX_KEYS:
        raise CorruptImage(f"{item.name}: {raw.KeyValueCount} keys, at most {MAX_KEYS} are expected")
    values: dict[str, str] = {}
    for key, value in _pairs(item, raw.KeyValueCount):
        if key in values:
            raise CorruptImage(f"{item.name}: the key {printable(key, 40)!r} is there twice, expected once")
        values[key] = value
    if LINKAGES[0] not in values:
        raise CorruptImage(f"{item.name}: it has no {LINKAGES[0]}, so the parent's identity is not known")
    linkages = [_linkage(item, key, values[key]) for key in LINKAGES if key in values]
    names = (_bare_name(values[key]) for key in PATHS if key in values)
    return ParentLocator(
        # Windows leaves the second identity in place as zeros.
        linkages=(linkages[0], *(linkage for linkage in linkages[1:] if linkage != NO_GUID)),
        file_names=tuple(dict.fromkeys(name for name in names if name is not None)),
    )


def _bare_name(path: str) -> str | None:
    """Return the last component of a path, or None if that is no file name anywhere."""
    name = _PATH_PREFIX.sub("", path)
    if name in {"", ".", ".."} or any(ord(character) < 32 for character in name):
        return None
    return name if len(name.encode()) <= MAX_NAME else None


def _linkage(item: ByteSource, key: str, text: str) -> UUID:
    match = _GUID_TEXT.fullmatch(text)
    if match is None:
        raise CorruptImage(f"{item.name}: {key} is {printable(text, 60)!r}, expected a GUID")
    return UUID(match[1])


def _pairs(item: ByteSource, count: int) -> Iterator[tuple[str, str]]:
    start, size = PARENT_LOCATOR_HEADER.sizeof(), PARENT_LOCATOR_ENTRY.size
    if start + count * size > item.size:
        raise CorruptImage(f"{item.name}: {count} keys need more than its {item.size} bytes")
    entries = item.read_at(start, count * size)
    for key_offset, value_offset, key_length, value_length in PARENT_LOCATOR_ENTRY.iter_unpack(entries):
        yield _text(item, key_offset, key_length), _text(item, value_offset, value_length)


def _text(item: ByteSource, offset: int, length: int) -> str:
    if not offset or not length or length % 2 or offset + length > item.size:
        raise CorruptImage(
            f"{item.name}: a key or value of {length} bytes at {offset:#x}, expected whole UTF-16 characters within "
            f"its {item.size} bytes"
        )
    try:
        return item.read_at(offset, length).decode("utf-16-le")
    except UnicodeDecodeError as error:
        raise CorruptImage(f"{item.name}: the key or value at {offset:#x} is not UTF-16") from error
