"""The footer of a VHD, and the copy of it that dynamic and differencing disks keep at offset 0.

Specification: Microsoft, Virtual Hard Disk Image Format Specification 1.0 (2006), "Hard Disk Footer Format".
Big-endian; offsets and sizes in bytes.
"""

import enum
from dataclasses import dataclass
from uuid import UUID

from construct import Bytes, Const, Int8ub, Int16ub, Int32ub, Int64ub, Padding, Struct

from diskfs_formats.binary import parse_bytes
from diskfs_formats.errors import ChecksumMismatch, CorruptImage, UnsupportedFeature
from diskfs_formats.findings import Finding, Severity
from diskfs_formats.source import ByteSource

SECTOR = 512
FOOTER_SIZE = 512
OLD_FOOTER_SIZE = 511
"""Bytes of a footer written before Virtual PC 2004: the last reserved byte is missing."""
COOKIE = b"conectix"
MAJOR_VERSION = 1
MAX_GEOMETRY = (65535, 16, 255)
"""What a disk has whose size no geometry can express."""
MAX_SPARSE_SIZE = 2 << 40
"""Bytes of a dynamic or differencing disk: as many as 32-bit sector numbers reach. Microsoft stops at 2040 GiB."""

FOOTER = Struct(
    "cookie" / Const(COOKIE),
    "features" / Int32ub,
    "file_format_version" / Int32ub,
    "data_offset" / Int64ub,
    "timestamp" / Int32ub,
    "creator_application" / Bytes(4),
    "creator_version" / Int32ub,
    "creator_host_os" / Bytes(4),
    "original_size" / Int64ub,
    "current_size" / Int64ub,
    "cylinders" / Int16ub,
    "heads" / Int8ub,
    "sectors_per_track" / Int8ub,
    "disk_type" / Int32ub,
    "checksum" / Int32ub,
    "unique_id" / Bytes(16),
    "saved_state" / Int8ub,
    Padding(427),
)
assert FOOTER.sizeof() == FOOTER_SIZE
_CHECKSUM_AT = 64

_SAME_SIZE_CREATORS = frozenset({b"win ", b"qem2", b"d2v ", b"tap\0", b"CTXS"})
"""Creators for which every version of QEMU goes by the current size."""


class DiskType(enum.IntEnum):
    """The types that are read."""

    FIXED = 2
    DYNAMIC = 3
    DIFFERENCING = 4


@dataclass(frozen=True, slots=True)
class Footer:
    """A checked footer. `offset` is where it lies, `size` the bytes it takes there; `timestamp` counts from 2000."""

    offset: int
    size: int
    data_offset: int
    timestamp: int
    creator_application: bytes
    current_size: int
    geometry: tuple[int, int, int]
    disk_type: DiskType
    unique_id: UUID
    saved_state: bool

    @property
    def virtual_size(self) -> int:
        """The current size in whole sectors."""
        return self.current_size // SECTOR * SECTOR


@dataclass(frozen=True, slots=True)
class _Copy:
    """The bytes of a footer whose cookie is right, and what is wrong with its checksum."""

    offset: int
    size: int
    data: bytes
    error: ChecksumMismatch | None


def is_footer_at_end(tail: bytes) -> bool:
    """Tell whether `tail`, the last bytes of a file, ends with what seems to be a footer."""
    return any(len(tail) >= size and tail[-size:].startswith(COOKIE) for size in (FOOTER_SIZE, OLD_FOOTER_SIZE))


def checksum_of(data: bytes, field_offset: int) -> int:
    """Return the checksum of a structure whose own field, of 4 bytes, counts as zero."""
    return ~(sum(data) - sum(data[field_offset : field_offset + 4])) & 0xFFFFFFFF


def read_footer(source: ByteSource, findings: list[Finding]) -> Footer:
    """Find and check the footer of `source`, and note in `findings` what is wrong with its copies.

    The one at the end is read; the copy at offset 0 only if that one is missing or damaged. Raises CorruptImage if
    none is valid, or if both are and describe two disks.
    """
    tail = _copy_at_end(source)
    if tail is not None and tail.error is None:
        footer = _checked(tail, source)
        if footer.disk_type is DiskType.FIXED:
            _look_into_fixed_disk(source, findings)
        else:
            _compare_copy(source, tail, footer, findings)
        return footer
    head = _copy_at_start(source)
    if head is None or head.error is not None:
        if tail is not None and tail.error is not None:
            raise tail.error
        if head is not None and head.error is not None:
            raise head.error
        raise CorruptImage(
            f"{source.name}: no VHD footer: neither the last {FOOTER_SIZE} or {OLD_FOOTER_SIZE} bytes nor the first "
            f"begin with {COOKIE.decode()!r}: the file is incomplete or no VHD"
        )
    footer = _checked(head, source)
    problem = "is missing" if tail is None else "has a wrong checksum"
    if footer.disk_type is DiskType.FIXED:
        raise CorruptImage(
            f"{source.name}: the VHD footer at the end {problem}, and the one at offset 0 is of a fixed disk, which "
            "keeps no copy there: the file is incomplete"
        )
    findings.append(
        Finding(
            "vhd-footer-at-start",
            Severity.WARNING,
            f"{source.name}: the VHD footer at the end of the file {problem}; its copy at offset 0 is used",
            "the file may have been cut short: run diskfs verify, and compare its size with the original",
        )
    )
    return footer


def examine_footer(source: ByteSource, footer: Footer) -> list[Finding]:
    """Return what is worth knowing about the fields of a footer."""
    findings = []
    if footer.saved_state:
        findings.append(
            Finding(
                "vhd-saved-state",
                Severity.WARNING,
                f"{source.name}: the VHD footer says that the disk belongs to a suspended machine: its file systems "
                "may be in the middle of changes",
                "start the machine and shut it down",
            )
        )
    if footer.current_size != footer.virtual_size:
        findings.append(
            Finding(
                "vhd-partial-sector",
                Severity.WARNING,
                f"{source.name}: the VHD footer's current size, {footer.current_size}, is no multiple of {SECTOR}; "
                f"{footer.virtual_size} bytes are read",
            )
        )
    cylinders, heads, sectors = footer.geometry
    in_geometry = cylinders * heads * sectors * SECTOR
    if (
        footer.creator_application not in _SAME_SIZE_CREATORS
        and footer.geometry != MAX_GEOMETRY
        and in_geometry != footer.current_size
    ):
        # QEMU 9.1 and older go by the geometry for these creators, later ones for "vpc " and "qemu" alone.
        findings.append(
            Finding(
                "vhd-geometry",
                Severity.INFO,
                f"{source.name}: the disk has {footer.current_size} bytes, its geometry {in_geometry}; some versions "
                "of QEMU show the latter",
            )
        )
    return findings


def _copy_at_end(source: ByteSource) -> _Copy | None:
    length = min(source.size, FOOTER_SIZE)
    tail = source.read_at(source.size - length, length)
    for size in (FOOTER_SIZE, OLD_FOOTER_SIZE):
        if length >= size and tail[-size:].startswith(COOKIE):
            return _copy(source, source.size - size, tail[-size:])
    return None


def _copy_at_start(source: ByteSource) -> _Copy | None:
    data = source.read_at(0, min(source.size, FOOTER_SIZE))
    return _copy(source, 0, data) if len(data) == FOOTER_SIZE and data.startswith(COOKIE) else None


def _copy(source: ByteSource, offset: int, data: bytes) -> _Copy:
    stored = int.from_bytes(data[_CHECKSUM_AT : _CHECKSUM_AT + 4], "big")
    computed = checksum_of(data, _CHECKSUM_AT)
    error = None
    if stored != computed:
        error = ChecksumMismatch(
            f"{source.name}: VHD footer at offset {offset:#x}: checksum {stored:#010x}, the bytes give "
            f"{computed:#010x}: the file is damaged; copy it again"
        )
    return _Copy(offset, len(data), data.ljust(FOOTER_SIZE, b"\0"), error)


def _checked(copy: _Copy, source: ByteSource) -> Footer:
    raw = parse_bytes(FOOTER, copy.data, source, copy.offset, "VHD footer")
    where = f"{source.name}: VHD footer at offset {copy.offset:#x}"
    if raw.file_format_version >> 16 != MAJOR_VERSION:
        raise UnsupportedFeature(
            f"{where}: file format version {raw.file_format_version:#010x} is not known, 0x00010000 is"
        )
    if raw.disk_type not in frozenset(DiskType):
        raise UnsupportedFeature(
            f"{where}: disk type {raw.disk_type} is not read; 2 (fixed), 3 (dynamic) and 4 (differencing) are"
        )
    if raw.current_size < SECTOR:
        raise CorruptImage(f"{where}: current size is {raw.current_size}, expected at least one sector")
    if raw.disk_type != DiskType.FIXED and raw.current_size > MAX_SPARSE_SIZE:
        raise CorruptImage(f"{where}: current size is {raw.current_size}, at most {MAX_SPARSE_SIZE} are possible")
    return Footer(
        offset=copy.offset,
        size=copy.size,
        data_offset=raw.data_offset,
        timestamp=raw.timestamp,
        creator_application=raw.creator_application,
        current_size=raw.current_size,
        geometry=(raw.cylinders, raw.heads, raw.sectors_per_track),
        disk_type=DiskType(raw.disk_type),
        unique_id=UUID(bytes=raw.unique_id),
        saved_state=raw.saved_state != 0,
    )


def _look_into_fixed_disk(source: ByteSource, findings: list[Finding]) -> None:
    """Note a footer in the first sector of a fixed disk: its guest wrote it, or the file is two disks at once."""
    head = _copy_at_start(source)
    if head is not None and head.error is None and source.size > FOOTER_SIZE:
        findings.append(
            Finding(
                "vhd-footer-in-disk",
                Severity.WARNING,
                f"{source.name}: a fixed disk, as the footer at its end says, whose first sector holds a VHD footer "
                "as well; it is read as part of the disk, while some programs open the file by it",
            )
        )


def _compare_copy(source: ByteSource, tail: _Copy, footer: Footer, findings: list[Finding]) -> None:
    head = _copy_at_start(source)
    if head is None or head.error is not None:
        problem = "is missing" if head is None else "has a wrong checksum"
        message = f"the copy of the VHD footer at offset 0 {problem}; some programs do not open the file"
    elif head.data == tail.data:
        return
    else:
        other = parse_bytes(FOOTER, head.data, source, 0, "VHD footer")
        # Programs differ in which copy they go by, so these would be two disks in one file.
        for name in ("disk_type", "current_size", "data_offset"):
            first, last = getattr(other, name), int(getattr(footer, name))
            if first != last:
                raise CorruptImage(
                    f"{source.name}: the VHD footers at offsets 0 and {footer.offset:#x} disagree: {name} is {first} "
                    f"and {last}; copy the right one over the other"
                )
        message = f"the VHD footers at offsets 0 and {footer.offset:#x} differ; the latter is used"
    findings.append(
        Finding(
            "vhd-footer-copy",
            Severity.WARNING,
            f"{source.name}: {message}",
            "AWS refuses such files: write the image anew with the program that made it",
        )
    )
