"""The log: what an unclean shutdown left to do, done in memory.

Specification: [MS-VHDX] 8.0, section 2.3. The log is a ring of 4 KiB sectors that holds entries of one or more
sectors; the newest complete sequence of entries is the active one, and it alone is replayed.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from diskfs_formats.binary import parse_bytes
from diskfs_formats.errors import CorruptImage, TruncatedImage, UnsupportedFeature
from diskfs_formats.findings import Finding, Severity
from diskfs_formats.source import Buffer, ByteSource
from diskfs_formats.vhdx.checksum import structure_checksum
from diskfs_formats.vhdx.headers import Header
from diskfs_formats.vhdx.replayed import Changes, ReplayedSource
from diskfs_formats.vhdx.structures import (
    DATA_SECTOR_SIGNATURE,
    DATA_SIGNATURE,
    HEADER_SECTION_SIZE,
    LOG_DATA_SECTOR,
    LOG_DESCRIPTOR,
    LOG_ENTRY_HEADER,
    LOG_ENTRY_SIGNATURE,
    LOG_SECTOR_SIZE,
    MIB,
    REGION_TABLE_OFFSETS,
    REGION_TABLE_SIZE,
    ZERO_SIGNATURE,
)

MAX_LOG_LENGTH = 16 * MIB
"""Bytes of a log that is replayed, as it is read whole: Hyper-V and qemu write 1 MiB."""
MAX_LAPS = 4
"""Log lengths of entries that are examined. Entries of one lap of the ring do not overlap, and what a second lap left
of the first does not either, so a log that asks for more was not written as a log."""
MAX_DESCRIPTORS = 1 << 15
"""Descriptors that are examined: more than fit a log of 1 MiB, even if it held nothing but zero descriptors."""
MAX_FILE_SIZE = 1 << 50
"""Bytes that a log may make the file grow to: far above a full 64 TiB disk, far below what arithmetic would mind."""

_FIRST_DESCRIPTOR = LOG_ENTRY_HEADER.sizeof()
_HEADER_DESCRIPTORS = _FIRST_DESCRIPTOR // LOG_DESCRIPTOR.size
"""Descriptors whose place the entry header takes."""
_SECTOR_DESCRIPTORS = LOG_SECTOR_SIZE // LOG_DESCRIPTOR.size
_GUID_AT = 32
_REMEDY = "the file on disk is not changed; a program that may write to it replays the log for good"


@dataclass(frozen=True, slots=True)
class LogEntry:
    """A valid entry. `offset` and `tail` count from the beginning of the log."""

    offset: int
    length: int
    tail: int
    sequence_number: int
    descriptor_count: int
    flushed_file_offset: int
    last_file_offset: int

    @property
    def data_offset(self) -> int:
        """Bytes from the beginning of the entry to its first data sector."""
        return -(-(self.descriptor_count + _HEADER_DESCRIPTORS) // _SECTOR_DESCRIPTORS) * LOG_SECTOR_SIZE


def replay_log(source: ByteSource, header: Header, findings: list[Finding]) -> ByteSource:
    """Return the file as it is after the log is replayed: `source` itself if there is nothing to replay.

    `source` is only read. Raises CorruptImage if the log holds no complete sequence, or one that would write where
    no log may; UnsupportedFeature if the log is larger than any that is known.
    """
    if not header.has_log:
        return source
    log = Log(source, header)
    sequence = log.active_sequence()
    changes = Changes()
    size = source.size
    room = max(size, *(entry.last_file_offset for entry in sequence))
    for entry in reversed(sequence):
        for start, end, data in reversed(list(log.updates(entry))):
            log.require_target(entry, start, end, room)
            changes.add(start, end, data)
            size = max(size, end)
    size = max(size, sequence[-1].last_file_offset)
    changes.add(source.size, size)
    replayed = changes.ascending()
    findings.append(
        Finding(
            "vhdx-log",
            Severity.INFO,
            f"{source.name}: the disk was not closed cleanly; {len(sequence)} log entries "
            f"({len(replayed)} changed ranges) are replayed in memory",
            _REMEDY,
        )
    )
    return ReplayedSource(source, replayed, size)


class Log:
    """The bytes of a log that is not empty, and the entries in it."""

    def __init__(self, source: ByteSource, header: Header) -> None:
        where = f"{source.name}: log at offset {header.log_offset:#x}"
        if not header.log_length:
            raise CorruptImage(f"{where}: the header says that it is to be replayed, and that it has 0 bytes")
        if header.log_length > MAX_LOG_LENGTH:
            raise UnsupportedFeature(
                f"{where}: {header.log_length} bytes are to be replayed, at most {MAX_LOG_LENGTH} can be; open the "
                "disk once where it was written, so that its log is replayed"
            )
        if header.log_offset + header.log_length > source.size:
            raise TruncatedImage(
                f"{where}: {header.log_length:#x} bytes are to be replayed, the file ends at {source.size:#x}: the "
                "file is incomplete"
            )
        self._where = where
        self._source = source
        self._header = header
        self._size = header.log_length
        self._ring = memoryview(source.read_at(header.log_offset, header.log_length))
        self._entry_bytes_left = MAX_LAPS * self._size
        self._descriptors_left = MAX_DESCRIPTORS

    def active_sequence(self) -> list[LogEntry]:
        """Return the newest complete sequence, from its tail to its head; raises CorruptImage if there is none.

        A sequence ends with its head, an entry that no valid entry continues, and begins with the entry that the
        head names as its tail; in between each sequence number is one more than the one before.
        """
        entries = {entry.offset: entry for entry in self._valid_entries()}
        heads: dict[int, LogEntry] = {}
        for entry in sorted(entries.values(), key=lambda entry: entry.sequence_number, reverse=True):
            following = self._following(entries, entry)
            heads[entry.offset] = heads[following.offset] if following else entry
        complete = [head for head in heads.values() if heads.get(head.tail) is head]
        if not complete:
            raise CorruptImage(
                f"{self._where}: the header says that it is to be replayed, but it holds no complete sequence of "
                f"entries of log {self._header.log_guid} ({len(entries)} whole entries): the disk's metadata cannot "
                "be trusted; take the image from a copy"
            )
        head = max(complete, key=lambda head: head.sequence_number)
        self._require_plausible_sizes(head)
        sequence = [entries[head.tail]]
        while sequence[-1] is not head:
            following = self._following(entries, sequence[-1])
            assert following is not None
            self._require_plausible_sizes(following)
            sequence.append(following)
        if self._source.size < head.flushed_file_offset:
            raise TruncatedImage(
                f"{self._where}: the file had {head.flushed_file_offset:#x} bytes when the log was written, and has "
                f"{self._source.size:#x}: it is incomplete"
            )
        return sequence

    def updates(self, entry: LogEntry) -> Iterator[tuple[int, int, bytes | None]]:
        """Yield start, end and data (None for zeros) of what an entry writes to the file, in its order."""
        view = self._bytes(entry.offset, entry.length)
        sectors = itertools.count(entry.data_offset, LOG_SECTOR_SIZE)
        for signature, trailing, leading, file_offset, _ in _descriptors(view, entry.descriptor_count):
            if signature == ZERO_SIGNATURE:
                yield file_offset, file_offset + int.from_bytes(leading, "little"), None
            else:
                _, _, data, _ = LOG_DATA_SECTOR.unpack_from(view, next(sectors))
                yield file_offset, file_offset + LOG_SECTOR_SIZE, leading + data + trailing

    def require_target(self, entry: LogEntry, start: int, end: int, room: int) -> None:
        """Raise CorruptImage unless an entry may write [start, end): the region tables, or what lies after the header
        section, within `room` and not the log itself."""
        if REGION_TABLE_OFFSETS[0] <= start and end <= REGION_TABLE_OFFSETS[1] + REGION_TABLE_SIZE:
            return
        log_start = self._header.log_offset
        problem = (
            f"the file has {room:#x} bytes"
            if end > room
            else "the headers are there"
            if start < HEADER_SECTION_SIZE
            else "the log itself is there"
            if start < log_start + self._size and log_start < end
            else None
        )
        if problem:
            raise CorruptImage(
                f"{self._where}: the entry at {entry.offset:#x} would write {start:#x} to {end:#x}, but {problem}: "
                "the log is damaged; take the image from a copy"
            )

    def _valid_entries(self) -> Iterator[LogEntry]:
        identity = self._header.log_guid.bytes_le
        for offset in range(0, self._size, LOG_SECTOR_SIZE):
            if self._ring[offset : offset + 4] != LOG_ENTRY_SIGNATURE:
                continue
            if self._ring[offset + _GUID_AT : offset + _GUID_AT + len(identity)] == identity:
                entry = self._entry_at(offset)
                if entry is not None:
                    yield entry

    def _entry_at(self, offset: int) -> LogEntry | None:
        """Return the entry that begins at `offset`, or None unless all of it is as it was written."""
        head = bytes(self._ring[offset : offset + _FIRST_DESCRIPTOR])
        raw = parse_bytes(LOG_ENTRY_HEADER, head, self._source, self._header.log_offset + offset, "VHDX log entry")
        entry = LogEntry(
            offset=offset,
            length=raw.EntryLength,
            tail=raw.Tail,
            sequence_number=raw.SequenceNumber,
            descriptor_count=raw.DescriptorCount,
            flushed_file_offset=raw.FlushedFileOffset,
            last_file_offset=raw.LastFileOffset,
        )
        if entry.length % LOG_SECTOR_SIZE or not entry.data_offset <= entry.length <= self._size:
            return None
        if entry.tail % LOG_SECTOR_SIZE or entry.tail >= self._size or entry.sequence_number == 0:
            return None
        self._charge(entry)
        view = self._bytes(offset, entry.length)
        if structure_checksum(view) != raw.Checksum:
            return None
        return entry if _is_consistent(view, entry) else None

    def _charge(self, entry: LogEntry) -> None:
        """Bound the work that a log can ask for."""
        self._entry_bytes_left -= entry.length
        self._descriptors_left -= entry.descriptor_count
        if self._entry_bytes_left < 0:
            raise CorruptImage(f"{self._where}: its entries lie on top of each other: it was not written as a log")
        if self._descriptors_left < 0:
            raise UnsupportedFeature(
                f"{self._where}: over {MAX_DESCRIPTORS} descriptors; open the disk once where it was written, so that "
                "its log is replayed"
            )

    def _bytes(self, offset: int, length: int) -> memoryview:
        """Return bytes of the ring, which goes on at its beginning."""
        end = offset + length
        if end <= self._size:
            return self._ring[offset:end]
        return memoryview(b"".join((self._ring[offset:], self._ring[: end - self._size])))

    def _following(self, entries: dict[int, LogEntry], entry: LogEntry) -> LogEntry | None:
        following = entries.get((entry.offset + entry.length) % self._size)
        if following is None or following.sequence_number != entry.sequence_number + 1:
            return None
        return following

    def _require_plausible_sizes(self, entry: LogEntry) -> None:
        if max(entry.flushed_file_offset, entry.last_file_offset) > MAX_FILE_SIZE:
            raise CorruptImage(
                f"{self._where}: the entry at {entry.offset:#x} says that the file has {entry.flushed_file_offset:#x} "
                f"bytes and grows to {entry.last_file_offset:#x}, at most {MAX_FILE_SIZE:#x} are possible"
            )


def _descriptors(view: Buffer, count: int) -> Iterator[tuple[bytes, bytes, bytes, int, int]]:
    end = _FIRST_DESCRIPTOR + count * LOG_DESCRIPTOR.size
    return LOG_DESCRIPTOR.iter_unpack(memoryview(view)[_FIRST_DESCRIPTOR:end])


def _is_consistent(view: Buffer, entry: LogEntry) -> bool:
    """Tell whether each descriptor and each data sector of an entry belongs to it and is well-formed."""
    data_sectors = 0
    for signature, _, leading, file_offset, sequence_number in _descriptors(view, entry.descriptor_count):
        if sequence_number != entry.sequence_number or file_offset % LOG_SECTOR_SIZE:
            return False
        if signature == DATA_SIGNATURE:
            data_sectors += 1
        elif signature != ZERO_SIGNATURE or int.from_bytes(leading, "little") % LOG_SECTOR_SIZE:
            return False
    if entry.data_offset + data_sectors * LOG_SECTOR_SIZE > entry.length:
        return False
    high, low = divmod(entry.sequence_number, 1 << 32)
    for number in range(data_sectors):
        sector = LOG_DATA_SECTOR.unpack_from(view, entry.data_offset + number * LOG_SECTOR_SIZE)
        if (sector[0], sector[1], sector[3]) != (DATA_SECTOR_SIGNATURE, high, low):
            return False
    return True
