"""Transaction logs of a hive: the changes that Windows had not yet written into the hive itself.

The specification's "new format", of Windows 8.1 and later: `HvLE` entries with whole pages. Logs of the old format
(`DIRT`, up to Windows 8) are not replayed; the hive is then read as it is, and is said to be unclean.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from diskfs.guest.errors import GuestError
from diskfs_formats.errors import DiskfsError
from diskfs_formats.source import ByteSource

LOG_HEADER_SIZE = 512
PAGE_SIZE = 4096
MAX_LOG = 4 << 20
"""Bytes of entries that are replayed; Windows writes the hive itself long before. Each is hashed here, slowly."""
MAX_ENTRIES = 4096
MARVIN_SEED = 0x82EF4D887A4E55C5

# signature, size, flags, sequence number, size of the hive bins, number of pages, hash of the body, hash of this header
_ENTRY = struct.Struct("<4sIIIIIQQ")
assert _ENTRY.size == 40
_MASK = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Replayed:
    """What the logs change: the size of the hive bins and whole pages, by their offset in the hive bins."""

    hive_bins_size: int
    pages: dict[int, bytes]


@dataclass(frozen=True, slots=True)
class _Entry:
    sequence: int
    hive_bins_size: int
    pages: dict[int, bytes]


def replay(logs: Sequence[ByteSource], sequence: int, limit: int) -> Replayed | None:
    """Return the changes from `sequence` on, the hive's secondary sequence number; None if there are none to be had.

    An entry counts if both its hashes are right and it follows the one before; `limit` bounds the hive bins, in bytes.
    """
    entries: dict[int, _Entry] = {}
    budget = MAX_LOG
    for log in logs:
        try:
            for entry in _entries(log, min(budget, log.size), limit):
                entries.setdefault(entry.sequence, entry)
        except DiskfsError:
            continue  # what cannot be read of one log is not replayed; the hive stays unclean
        budget -= min(budget, log.size)
    wanted = [number for number in sorted(entries) if number >= sequence]
    if not wanted:
        return None
    pages: dict[int, bytes] = {}
    size, expected = 0, wanted[0]
    while expected in entries:
        size = entries[expected].hive_bins_size
        pages.update(entries[expected].pages)
        expected += 1
    return Replayed(size, pages)


def _entries(log: ByteSource, length: int, limit: int) -> list[_Entry]:
    """Return the entries of one log up to the first that is not whole."""
    if length < LOG_HEADER_SIZE + _ENTRY.size or log.read_at(0, 4) != b"regf":
        return []
    found: list[_Entry] = []
    offset = LOG_HEADER_SIZE
    while offset + _ENTRY.size <= length and len(found) < MAX_ENTRIES:
        header = log.read_at(offset, _ENTRY.size)
        signature, size, _, sequence, bins, count, body_hash, header_hash = _ENTRY.unpack(header)
        if signature != b"HvLE" or size % 512 or not _ENTRY.size < size <= length - offset or bins > limit:
            break
        if found and sequence != found[-1].sequence + 1:
            break
        body = log.read_at(offset + _ENTRY.size, size - _ENTRY.size)
        if marvin32(header[:32]) != header_hash or marvin32(body) != body_hash:
            break
        found.append(_Entry(sequence, bins, _pages(log, offset, body, count, bins)))
        offset += size
    return found


def _pages(log: ByteSource, offset: int, body: bytes, count: int, bins: int) -> dict[int, bytes]:
    if count * 8 > len(body):
        raise GuestError(f"{log.name}: offset {offset:#x}: the entry counts {count} pages in {len(body)} bytes")
    pages = {}
    at = count * 8
    for page, size in struct.iter_unpack("<II", body[:at]):
        if page % PAGE_SIZE or size % PAGE_SIZE or page + size > bins or at + size > len(body):
            raise GuestError(f"{log.name}: offset {offset:#x}: a page of {size} bytes at {page:#x} is outside the hive")
        for start in range(0, size, PAGE_SIZE):
            pages[page + start] = body[at + start : at + start + PAGE_SIZE]
        at += size
    return pages


def marvin32(data: bytes, seed: int = MARVIN_SEED) -> int:
    """Return the 64-bit Marvin32 hash, the low half of the state in the low bits."""
    low, high = seed & _MASK, seed >> 32
    whole = len(data) // 4 * 4
    last = int.from_bytes(data[whole:] + b"\x80", "little")
    for words in (struct.iter_unpack("<I", data[:whole]), ((last,), (0,))):
        for (word,) in words:
            low = (low + word) & _MASK
            high ^= low
            low = ((low << 20 | low >> 12) + high) & _MASK
            high = (high << 9 | high >> 23) & _MASK ^ low
            low = ((low << 27 | low >> 5) + high) & _MASK
            high = (high << 19 | high >> 13) & _MASK
    return high << 32 | low
