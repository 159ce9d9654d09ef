"""The two headers, of which one is current: identity of the content, and where the log is.

Specification: [MS-VHDX] 8.0, section 2.2.2.
"""

from dataclasses import dataclass
from uuid import UUID

from diskfs_formats.binary import parse_bytes, parse_structure
from diskfs_formats.errors import ChecksumMismatch, CorruptImage, TruncatedImage, UnsupportedFeature
from diskfs_formats.findings import Finding, Severity
from diskfs_formats.source import ByteSource
from diskfs_formats.vhdx.checksum import structure_checksum
from diskfs_formats.vhdx.structures import FILE_IDENTIFIER, HEADER, HEADER_OFFSETS, MIB, NO_GUID, guid


@dataclass(frozen=True, slots=True)
class Header:
    """The current header, checked. Offsets and lengths in bytes."""

    offset: int
    sequence_number: int
    data_write_guid: UUID
    log_guid: UUID
    log_offset: int
    log_length: int

    @property
    def has_log(self) -> bool:
        """Whether the log holds something to replay."""
        return self.log_guid != NO_GUID


def read_current_header(source: ByteSource, findings: list[Finding]) -> Header:
    """Check the file identifier and both headers, and return the current one; raises ImageError.

    A header that is damaged while the other is whole is what a crash leaves, and becomes a finding.
    """
    parse_structure(FILE_IDENTIFIER, source, 0, "VHDX file identifier")
    valid: list[tuple[int, bytes]] = []
    problems: list[CorruptImage] = []
    for offset in HEADER_OFFSETS:
        try:
            valid.append((offset, _read_copy(source, offset)))
        except CorruptImage as error:
            problems.append(error)
    if not valid:
        raise problems[0]
    findings.extend(
        Finding("vhdx-header", Severity.WARNING, str(problem), "the other header is whole, and is the one used")
        for problem in problems
    )
    return _current(source, valid)


def _read_copy(source: ByteSource, offset: int) -> bytes:
    """Return the bytes of one header whose signature and checksum are right."""
    size = HEADER.sizeof()
    if offset + size > source.size:
        raise TruncatedImage(
            f"{source.name}: the header at offset {offset:#x} needs {size} bytes, the file ends at {source.size:#x}: "
            "the file is incomplete"
        )
    data = source.read_at(offset, size)
    stored = parse_bytes(HEADER, data, source, offset, "VHDX header").Checksum
    computed = structure_checksum(data)
    if stored != computed:
        raise ChecksumMismatch(
            f"{source.name}: header at offset {offset:#x}: CRC-32C {stored:#010x}, expected {computed:#010x}"
        )
    return data


def _current(source: ByteSource, valid: list[tuple[int, bytes]]) -> Header:
    """Choose the header with the larger sequence number, and check what it says."""
    parsed = [(offset, parse_bytes(HEADER, data, source, offset, "VHDX header")) for offset, data in valid]
    if len(parsed) == 2:
        (_, first), (_, second) = parsed
        # Disk2vhd writes the same header twice; two different ones with one number leave no current header.
        if first.SequenceNumber == second.SequenceNumber and valid[0][1] != valid[1][1]:
            raise CorruptImage(
                f"{source.name}: the headers at offsets {parsed[0][0]:#x} and {parsed[1][0]:#x} differ and have the "
                f"same sequence number, {first.SequenceNumber}: neither is current; take the image from a copy"
            )
    offset, raw = max(parsed, key=lambda header: header[1].SequenceNumber)
    where = f"{source.name}: header at offset {offset:#x}"
    if raw.Version != 1:
        raise UnsupportedFeature(f"{where}: version {raw.Version} is not known, 1 is")
    header = Header(
        offset=offset,
        sequence_number=raw.SequenceNumber,
        data_write_guid=guid(raw.DataWriteGuid),
        log_guid=guid(raw.LogGuid),
        log_offset=raw.LogOffset,
        log_length=raw.LogLength,
    )
    if header.has_log and raw.LogVersion != 0:
        raise UnsupportedFeature(f"{where}: a log of version {raw.LogVersion} is to be replayed, 0 is known")
    if header.log_length % MIB or header.log_offset % MIB or (header.log_length and header.log_offset < MIB):
        raise CorruptImage(
            f"{where}: a log of {header.log_length:#x} bytes at offset {header.log_offset:#x}, expected multiples of "
            "1 MiB from 1 MiB on"
        )
    return header
