"""The files of a source's disks as the service would see them: which format each is, from its own bytes.

Nothing here relies on the disk being readable: a differencing image without its parent, a device mapping or a file that
is no disk at all are just what the rules about formats are for.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from diskfs.disks.opening import OpenedDisk
from diskfs_formats.binary import parse_structure
from diskfs_formats.driver import Match, ProbeWindow
from diskfs_formats.errors import CorruptImage, DiskfsError
from diskfs_formats.findings import Finding
from diskfs_formats.partitions import PartitionTable, read_partition_table
from diskfs_formats.registry import DRIVERS, recognised_only
from diskfs_formats.source import ByteSource
from diskfs_formats.vhd.footer import COOKIE, FOOTER, FOOTER_SIZE, OLD_FOOTER_SIZE, checksum_of
from diskfs_formats.vhdx.headers import read_current_header
from diskfs_formats.vhdx.log import replay_log
from diskfs_formats.vhdx.metadata import read_metadata
from diskfs_formats.vhdx.regions import read_regions
from diskfs_formats.vmdk.cowd import COWD_MAGIC
from diskfs_formats.vmdk.descriptor import MAX_DESCRIPTOR_SIZE, NO_PARENT, Descriptor, is_descriptor, parse_descriptor
from diskfs_formats.vmdk.header import FLAG_MARKERS, GD_AT_END, MAGIC, SECTOR, SPARSE_HEADER
from diskfs_formats.vmdk.sesparse import SESPARSE_MAGIC

T = TypeVar("T")

TAKEN_FORMATS = frozenset({"raw", "vhd", "vhdx", "vmdk"})
"""The disk formats that the service reads in one operation or another."""

ISO_SIGNATURE_OFFSET = 0x8001
ISO_SIGNATURE = b"CD001"
_WRAPPERS = (
    # offset, signature, what it is; registry.recognised_only has more
    (0, b"BZh", "bzip2-compressed"),
    (0, b"7z\xbc\xaf\x27\x1c", "7z-compressed"),
    (0, b"\x04\x22\x4d\x18", "lz4-compressed"),
)
_DYNAMIC_HEADER = b"cxsparse"


@dataclass(frozen=True, slots=True)
class VmdkFacts:
    """What the header and the descriptor of a VMDK say. `flags` and `compression` are None without a sparse header."""

    kind: str
    """`sparse header`, `descriptor`, `COWD` or `seSparse`."""
    version: int | None = None
    flags: int | None = None
    compression: int | None = None
    capacity_sectors: int | None = None
    descriptor: Descriptor | None = None
    descriptor_offset: int = 0
    is_directory_at_end: bool = False
    """Whether only a footer knows where the grain directory is."""
    has_end_of_stream: bool = False
    problem: str = ""

    @property
    def is_stream(self) -> bool:
        """Whether the header says that the grains come with markers, the last of which ends the stream."""
        return self.flags is not None and bool(self.flags & FLAG_MARKERS)

    @property
    def create_type(self) -> str:
        """As it is written; empty if unknown."""
        return self.descriptor.create_type if self.descriptor else ""

    @property
    def extent_types(self) -> tuple[str, ...]:
        """The types of the descriptor's extent lines, in upper case."""
        return tuple(line.type.upper() for line in self.descriptor.extents) if self.descriptor else ()

    @property
    def parent_cid(self) -> int:
        """NO_PARENT where there is none."""
        return self.descriptor.parent_cid if self.descriptor else NO_PARENT


@dataclass(frozen=True, slots=True)
class VhdFacts:
    """The footer of a VHD. `footer_offset` is None if there is none at the end of the file."""

    footer_offset: int | None
    footer_size: int
    checksum: int
    computed_checksum: int
    disk_type: int
    current_size: int
    data_offset: int
    copy_differs_at: int | None
    """The first byte in which the copy at offset 0 differs; None if it is identical. Means nothing for a fixed disk."""
    has_dynamic_header: bool


@dataclass(frozen=True, slots=True)
class VhdxFacts:
    """What the metadata of a VHDX says."""

    has_parent: bool
    virtual_size: int
    log_guid: str
    """Empty if the log has nothing to replay."""


class DiskFile:
    """The file of one disk, and what its bytes say. `disk` is what opening made of it, if it got so far."""

    def __init__(
        self, index: int, name: str, stored: ByteSource | None, disk: OpenedDisk | None, problem: DiskfsError | None
    ) -> None:
        self.index = index
        self.name = name
        self.stored = stored
        self.disk = disk
        self.problem = problem

    def __str__(self) -> str:
        return f"disk{self.index} ({self.name})"

    @property
    def bytes(self) -> ByteSource:
        """The file; raises the DiskfsError for which there is none."""
        if self.stored is None:
            raise self.problem or CorruptImage(f"{self.name}: the file is not there")
        return self.stored

    @functools.cached_property
    def window(self) -> ProbeWindow:
        """Both ends of the file."""
        return ProbeWindow.of(self.bytes)

    @functools.cached_property
    def candidates(self) -> tuple[str, ...]:
        """What the file could be, best first: a format's name, or what kind of file it is instead."""
        window = self.window
        if self.disk is not None and self.disk.driver is not None and self.disk.driver.name != "raw":
            return (self.disk.driver.name,)
        if window.size == 0:
            return ("empty",)
        found = [driver.name for driver in DRIVERS if driver.probe(window) is Match.SIGNATURE]
        found += recognised_only(window)
        found += [name for offset, magic, name in _WRAPPERS if window.head[offset : offset + len(magic)] == magic]
        if self._is_iso9660():
            found.append("ISO 9660")
        forced = self.disk is not None and self.disk.driver is not None
        return ("raw",) if not found or (forced and found[0] in TAKEN_FORMATS) else tuple(found)

    @property
    def format(self) -> str:
        """The most likely of `candidates`."""
        return self.candidates[0]

    def _is_iso9660(self) -> bool:
        """Whether this is an image of an optical disc, hybrid ones included.

        A signature in the gap before the first partition is what an earlier use of the disk has left.
        """
        window = self.window
        end = ISO_SIGNATURE_OFFSET + len(ISO_SIGNATURE)
        if window.head[ISO_SIGNATURE_OFFSET:end] != ISO_SIGNATURE:
            return False
        try:
            table: PartitionTable | None = read_partition_table(self.bytes)
        except DiskfsError:
            return True
        if table is None or not table.partitions:
            return True
        return any(one.offset < end for one in table.partitions)

    @functools.cached_property
    def vmdk(self) -> VmdkFacts | None:
        """What a VMDK says of itself; None for another format."""
        return _vmdk_facts(self.bytes, self.window) if "vmdk" in self.candidates else None

    @functools.cached_property
    def vhd(self) -> VhdFacts | None:
        """What a VHD says of itself; None for another format."""
        return _vhd_facts(self.bytes, self.window) if "vhd" in self.candidates else None

    @functools.cached_property
    def vhdx(self) -> VhdxFacts | None:
        """What a VHDX says of itself; None for another format. Raises ImageError for one whose metadata is damaged."""
        return _vhdx_facts(self.bytes) if "vhdx" in self.candidates else None

    @property
    def virtual_size(self) -> int | None:
        """Bytes that the guest sees; None if nothing tells."""
        if self.disk is not None and self.disk.opened is not None:
            return self.disk.opened.size
        return _or_none(self._described_size)

    def _described_size(self) -> int | None:
        vmdk, vhd, vhdx = self.vmdk, self.vhd, self.vhdx
        if vmdk is not None:
            if vmdk.descriptor is not None and vmdk.descriptor.extents:
                return vmdk.descriptor.sectors * SECTOR
            return None if vmdk.capacity_sectors is None else vmdk.capacity_sectors * SECTOR
        if vhd is not None:
            return vhd.current_size
        return vhdx.virtual_size if vhdx is not None else None


def _or_none(fact: Callable[[], T]) -> T | None:
    try:
        return fact()
    except DiskfsError:
        return None


def _vmdk_facts(source: ByteSource, window: ProbeWindow) -> VmdkFacts:
    head = window.head
    if head.startswith(COWD_MAGIC):
        return VmdkFacts("COWD")
    if head.startswith(SESPARSE_MAGIC):
        return VmdkFacts("seSparse")
    if not head.startswith(MAGIC):
        if not is_descriptor(head) or source.size > MAX_DESCRIPTOR_SIZE:
            return VmdkFacts("unknown", problem="it has neither a sparse header nor a descriptor")
        descriptor, problem = _descriptor(source, 0, source.size)
        return VmdkFacts("descriptor", descriptor=descriptor, problem=problem)
    raw = parse_structure(SPARSE_HEADER, source, 0, "VMDK sparse header")
    offset, size = raw.descriptorOffset * SECTOR, raw.descriptorSize * SECTOR
    found, problem = _descriptor(source, offset, size) if offset else (None, "")
    return VmdkFacts(
        kind="sparse header",
        version=raw.version,
        flags=raw.flags,
        compression=raw.compressAlgorithm,
        capacity_sectors=raw.capacity,
        descriptor=found,
        descriptor_offset=offset,
        is_directory_at_end=raw.gdOffset == GD_AT_END,
        # An end-of-stream marker: val 0, size 0, type 0 (Virtual Disk Format 5.0, "Markers").
        has_end_of_stream=not any(window.tail[-SECTOR:][:16]),
        problem=problem,
    )


def _descriptor(source: ByteSource, offset: int, size: int) -> tuple[Descriptor | None, str]:
    if offset + size > source.size or size > MAX_DESCRIPTOR_SIZE:
        return None, f"the descriptor at offset {offset:#x} would be {size} bytes long"
    try:
        descriptor = parse_descriptor(source.read_at(offset, size), source.name)
    except CorruptImage as error:
        return None, str(error)
    return (descriptor, "") if descriptor.values or descriptor.extents else (None, "")


def _vhd_facts(source: ByteSource, window: ProbeWindow) -> VhdFacts:
    size = next(
        (size for size in (FOOTER_SIZE, OLD_FOOTER_SIZE) if window.tail[-size:].startswith(COOKIE)),
        None,
    )
    copy = window.head[:FOOTER_SIZE]
    data = copy if size is None else window.tail[-size:].ljust(FOOTER_SIZE, b"\0")
    raw = FOOTER.parse(data)
    header_at = raw.data_offset
    differs = next((place for place, (one, two) in enumerate(zip(data, copy, strict=False)) if one != two), None)
    return VhdFacts(
        footer_offset=None if size is None else source.size - size,
        footer_size=size or FOOTER_SIZE,
        checksum=raw.checksum,
        computed_checksum=checksum_of(data, 64),
        disk_type=raw.disk_type,
        current_size=raw.current_size,
        data_offset=header_at,
        copy_differs_at=differs,
        has_dynamic_header=header_at + 8 <= source.size and source.read_at(header_at, 8) == _DYNAMIC_HEADER,
    )


def _vhdx_facts(source: ByteSource) -> VhdxFacts:
    findings: list[Finding] = []
    header = read_current_header(source, findings)
    file = replay_log(source, header, findings)
    metadata = read_metadata(file, read_regions(file, header, findings).metadata)
    log_guid = str(header.log_guid) if header.log_guid.int else ""
    return VhdxFacts(metadata.has_parent, metadata.virtual_disk_size, log_guid)
