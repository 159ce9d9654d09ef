"""LVM 2: which logical volumes there are on some physical volumes, and where their bytes lie.

Label, PV header and metadata area: lvm2, lib/format_text/layout.h and lib/label/label.h; little-endian. The metadata
itself is text, lvm2, man 5 lvm.conf and lib/format_text/export.c; sizes in it are 512-byte sectors and extents.
Read are linear and striped segments, and one leg of mirrors; everything else is named.
"""

import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

from diskfs.guest.errors import GuestError
from diskfs.guest.readers.device import Device

SECTOR = 512
LABEL_SECTORS = 4
MDA_HEADER_SIZE = 512
MDA_MAGIC = b" LVM2 x[5A%r0N*>"
RAW_LOCN_IGNORED = 1
INITIAL_CRC = 0xF597A6CF

MAX_AREAS = 8
"""Areas of one kind on one physical volume; lvm2 writes one or two."""

MAX_TEXT = 4 << 20
"""Bytes of metadata; a group of a thousand volumes has a tenth of it."""

MAX_DEPTH = 8
"""Sections within sections; lvm2 writes four."""

MAX_SEGMENTS = 16384
"""Pieces of one logical volume, stripes counted."""

MAX_LOGICAL_VOLUMES = 256
MAX_LEGS = 4
"""Volumes that are legs of each other; lvm2 stacks two."""

WORD = re.compile(r'\s+|#[^\n]*|"(?:[^"\\]|\\.)*"|[A-Za-z0-9_.+\-]+|[={}\[\],]')
Section: TypeAlias = dict[str, Any]
Piece: TypeAlias = tuple[int, int, int]
"""Index of the physical volume, offset on it, length; bytes."""

NOT_READ = {
    "thin": "it is thinly provisioned",
    "thin-pool": "it is a pool of thin volumes",
    "cache": "it is cached",
    "cache-pool": "it is a cache",
    "writecache": "it has a write cache",
    "snapshot": "it is a snapshot",
    "vdo": "it is deduplicated by VDO",
    "vdo-pool": "it is a VDO pool",
}


class NotRead(GuestError):
    """One logical volume cannot be read; the others can."""


def logical_volumes(devices: Sequence[Device]) -> list[dict[str, Any]]:
    """Return the visible logical volumes on these physical volumes, as `diskfs.guest.volumes` takes them.

    Raises GuestError if no physical volume has metadata that can be read.
    """
    groups: dict[str, tuple[str, Section]] = {}
    members: dict[str, int] = {}
    errors = []
    for index, device in enumerate(devices):
        try:
            identifier, areas = _read_label(device)
            members.setdefault(identifier, index)
            texts = [_read_area(device, *area) for area in areas]
            parsed = [parse(text) for text in texts if text]
        except (GuestError, OSError, struct.error) as error:
            errors.append(str(error))
            continue
        for section in parsed:
            for name, group in section.items():
                if isinstance(group, dict) and isinstance(group.get("physical_volumes"), dict):
                    known = groups.get(str(group.get("id")))
                    if known is None or _number(group, "seqno") > _number(known[1], "seqno"):
                        groups[str(group.get("id"))] = (name, group)
    if not groups:
        raise GuestError("; ".join(errors) or "no physical volume has metadata")
    found = [volume for name, group in groups.values() for volume in _Group(name, group, members, devices).volumes()]
    if len(found) > MAX_LOGICAL_VOLUMES:
        raise GuestError(f"there are {len(found)} logical volumes, over the limit of {MAX_LOGICAL_VOLUMES}")
    return found


class _Group:
    def __init__(self, name: str, group: Section, members: dict[str, int], devices: Sequence[Device]) -> None:
        self._name = name
        self._devices = devices
        self._extent = _number(group, "extent_size") * SECTOR
        if not 0 < self._extent <= 1 << 40:
            raise GuestError(f"volume group {name}: an extent has {self._extent} bytes")
        self._volumes = group.get("logical_volumes", {})
        self._physical = {}
        for alias, physical in group["physical_volumes"].items():
            if isinstance(physical, dict):
                index = members.get(str(physical.get("id", "")).replace("-", ""))
                self._physical[alias] = (index, _number(physical, "pe_start") * SECTOR)

    def volumes(self) -> Iterator[dict[str, Any]]:
        if not isinstance(self._volumes, dict):
            return
        present = [index for index, _ in self._physical.values() if index is not None]
        for name, volume in self._volumes.items():
            if not isinstance(volume, dict) or "VISIBLE" not in volume.get("status", ()):
                continue
            pieces: list[Piece] = []
            size, problem = 0, ""
            try:
                size = self._size(volume)
                pieces = _merged(self._pieces(volume, MAX_LEGS))
            except (NotRead, GuestError) as error:
                problem = str(error)
            first = pieces[0][0] if pieces else min(present, default=0)
            yield {
                "name": f"{self._name}/{name}",
                "first": first,
                "size": size,
                "segments": [list(piece) for piece in pieces],
                "problem": problem,
            }

    def _segments(self, volume: Section) -> list[Section]:
        segments = [value for key, value in volume.items() if key.startswith("segment") and isinstance(value, dict)]
        if not segments or len(segments) > MAX_SEGMENTS:
            raise NotRead(f"it has {len(segments)} segments")
        return sorted(segments, key=lambda segment: _number(segment, "start_extent"))

    def _size(self, volume: Section) -> int:
        return sum(_number(segment, "extent_count") for segment in self._segments(volume)) * self._extent

    def _pieces(self, volume: Section, legs_left: int) -> list[Piece]:
        pieces: list[Piece] = []
        extents = 0
        for segment in self._segments(volume):
            if _number(segment, "start_extent") != extents:
                raise NotRead(f"its segments leave a gap or overlap at extent {extents}")
            count = _number(segment, "extent_count")
            extents += count
            kind = str(segment.get("type", "")).split("+")[0]
            if kind in {"striped", "linear"}:
                pieces += self._striped(segment, count * self._extent)
            elif kind in {"mirror", "raid1"}:
                pieces += self._leg(segment, legs_left, count * self._extent)
            else:
                raise NotRead(f"{NOT_READ.get(kind, f'it is of type {kind}')}, which is not read")
            if len(pieces) > MAX_SEGMENTS:
                raise NotRead(f"it is in over {MAX_SEGMENTS} pieces")
        return pieces

    def _leg(self, segment: Section, legs_left: int, length: int) -> list[Piece]:
        """Return the first leg of a mirror: that of `mirrors` at its first place, that of `raids` at its second."""
        names = segment.get("mirrors", segment.get("raids"))
        at = 0 if "mirrors" in segment else 1
        leg = self._volumes.get(names[at]) if isinstance(names, list) and len(names) > at else None
        if not isinstance(leg, dict) or legs_left <= 0:
            raise NotRead("the leg of its mirror is not there, or is a mirror of mirrors")
        pieces = self._pieces(leg, legs_left - 1)
        if sum(piece[2] for piece in pieces) != length:
            raise NotRead("the leg of its mirror has another size")
        return pieces

    def _striped(self, segment: Section, length: int) -> list[Piece]:
        stripes = segment.get("stripes")
        count = _number(segment, "stripe_count")
        if not isinstance(stripes, list) or len(stripes) != 2 * count or not count:
            raise NotRead("its stripes are not as many as its metadata says")
        places = [self._place(stripes[at], stripes[at + 1]) for at in range(0, len(stripes), 2)]
        if count == 1:
            return [self._piece(*places[0], length)]
        size = _number(segment, "stripe_size") * SECTOR
        if not size or length % (size * count) or length // size > MAX_SEGMENTS:
            raise NotRead(f"it is in {length // size if size else 'no'} stripes, over the limit of {MAX_SEGMENTS}")
        return [
            self._piece(places[at % count][0], places[at % count][1] + at // count * size, size)
            for at in range(length // size)
        ]

    def _place(self, alias: Any, extent: Any) -> tuple[int, int]:
        physical = self._physical.get(alias) if isinstance(alias, str) else None
        if physical is None or not isinstance(extent, int) or extent < 0:
            raise NotRead(f"a stripe lies on {alias!r}, which is no physical volume")
        index, start = physical
        if index is None:
            raise NotRead(f"its physical volume {alias} is not on these disks")
        return index, start + extent * self._extent

    def _piece(self, index: int, offset: int, length: int) -> Piece:
        if offset + length > self._devices[index].size:
            raise NotRead(f"it runs past the end of its physical volume, {self._devices[index].size} bytes long")
        return index, offset, length


def _merged(pieces: list[Piece]) -> list[Piece]:
    merged: list[Piece] = []
    for index, offset, length in pieces:
        if merged and merged[-1][0] == index and merged[-1][1] + merged[-1][2] == offset:
            merged[-1] = (index, merged[-1][1], merged[-1][2] + length)
        elif length:
            merged.append((index, offset, length))
    return merged


def _read_label(device: Device) -> tuple[str, list[tuple[int, int]]]:
    """Return the physical volume's identifier and its metadata areas."""
    head = device.read_up_to(0, LABEL_SECTORS * SECTOR)
    for at in range(0, len(head), SECTOR):
        if head[at : at + 8] == b"LABELONE" and head[at + 24 : at + 32] == b"LVM2 001":
            break
    else:
        raise GuestError("there is no label of a physical volume in the first four sectors")
    sector = head[at : at + SECTOR]
    start = int.from_bytes(sector[20:24], "little")
    identifier = sector[start : start + 32].decode("ascii", "replace")
    lists: list[list[tuple[int, int]]] = [[], []]
    offset = start + 40
    for areas in lists:
        while True:
            place, size = struct.unpack_from("<QQ", sector, offset)
            offset += 16
            if not place:
                break
            areas.append((place, size))
            if len(areas) > MAX_AREAS:
                raise GuestError(f"the physical volume's header lists over {MAX_AREAS} areas")
    return identifier, lists[1]


def _read_area(device: Device, offset: int, size: int) -> str:
    """Return the text in a metadata area, nothing if it has none."""
    header = device.read_at(offset, MDA_HEADER_SIZE)
    if header[4:20] != MDA_MAGIC:
        raise GuestError(f"metadata area at {offset:#x}: its signature is missing")
    at, length, checksum, flags = struct.unpack_from("<QQII", header, 40)
    if not at or flags & RAW_LOCN_IGNORED:
        return ""
    if not MDA_HEADER_SIZE <= at < size or length > min(MAX_TEXT, size):
        raise GuestError(f"metadata area at {offset:#x}: {length} bytes of text at {at:#x} of {size}")
    # The area is a ring behind its header.
    first = min(length, size - at)
    data = device.read_at(offset + at, first) + device.read_at(offset + MDA_HEADER_SIZE, length - first)
    found = ~zlib.crc32(data, ~INITIAL_CRC & 0xFFFFFFFF) & 0xFFFFFFFF
    if found != checksum:
        raise GuestError(
            f"metadata area at {offset:#x}: the text's CRC is {found:#010x}, its header says {checksum:#010x}"
        )
    return data.rstrip(b"\0").decode("utf-8", "replace")


def parse(text: str) -> Section:
    """Parse metadata; raises GuestError where it is none."""
    top: Section = {}
    stack = [top]
    key: str | None = None
    words = _words(text)
    for word in words:
        if word == "}":
            if len(stack) == 1 or key is not None:
                raise GuestError("metadata: a section ends that has not begun")
            stack.pop()
        elif word == "{":
            if key is None or len(stack) > MAX_DEPTH:
                raise GuestError(f"metadata: a section without a name, or over {MAX_DEPTH} of them inside each other")
            section: Section = {}
            stack[-1][key] = section
            stack.append(section)
            key = None
        elif word == "=":
            if key is None:
                raise GuestError("metadata: a value without a name")
            stack[-1][key] = _value(next(words, ""), words)
            key = None
        elif key is None:
            key = word
        else:
            raise GuestError(f"metadata: {word[:40]!r} stands where '=' or a section was expected")
    if len(stack) > 1 or key is not None:
        raise GuestError("metadata: it ends inside a section")
    return top


def _words(text: str) -> Iterator[str]:
    at = 0
    while at < len(text):
        match = WORD.match(text, at)
        if match is None:
            raise GuestError(f"metadata: {text[at : at + 20]!r} makes no sense")
        at = match.end()
        word = match.group()
        if not word[0].isspace() and word[0] != "#":
            yield word


def _value(word: str, words: Iterator[str]) -> Any:
    if word != "[":
        return _scalar(word)
    values: list[Any] = []
    for word in words:  # noqa: PLR1704 - the bracket is done with
        if word == "]":
            return values
        if word != ",":
            values.append(_scalar(word))
    raise GuestError("metadata: a list does not end")


def _scalar(word: str) -> Any:
    if word.startswith('"'):
        return re.sub(r"\\(.)", r"\1", word[1:-1])
    try:
        return int(word) if len(word) < 20 else word
    except ValueError:
        if word in {"", "{", "}", "=", "]", "["}:
            raise GuestError(f"metadata: {word!r} stands where a value was expected") from None
        return word


def _number(section: Section, key: str) -> int:
    value = section.get(key)
    if not isinstance(value, int) or not 0 <= value < 1 << 50:
        raise NotRead(f"metadata: {key} is {value!r}, expected a number")
    return value
