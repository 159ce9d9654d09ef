"""The extents that a descriptor lists: which lines are taken, which files they may name, and what those must be.

Specification: VMware, Virtual Disk Format 5.0 (2011), "The Descriptor File", "Extent Descriptions". A disk's extents
follow each other in the order of their lines, each as long as its line says.
"""

import contextlib
from dataclasses import dataclass, field

from diskfs_formats.binary import ENTRIES_PER_PAGE
from diskfs_formats.driver import ImageInfo, RelatedFiles
from diskfs_formats.errors import CorruptImage, ParentUnavailable, TruncatedImage, UnsafeReference, UnsupportedFeature
from diskfs_formats.findings import Finding, Severity
from diskfs_formats.source import ByteSource
from diskfs_formats.text import printable
from diskfs_formats.vmdk.cowd import COWD_MAGIC, read_cowd_header
from diskfs_formats.vmdk.descriptor import MAX_DESCRIPTOR_SIZE, Descriptor, ExtentLine, parse_descriptor
from diskfs_formats.vmdk.grains import GrainExtent, TableCache
from diskfs_formats.vmdk.header import (
    GD_AT_END,
    MAGIC,
    MAX_CAPACITY,
    SECTOR,
    UNFINISHED_MAGIC,
    SparseHeader,
    read_footer,
    read_header,
)
from diskfs_formats.vmdk.image import Segment, flat_segment, mapped_segment, zero_segment
from diskfs_formats.vmdk.sesparse import GRAIN_SECTORS, SESPARSE_MAGIC, SeSparseExtent, read_sesparse_header
from diskfs_formats.vmdk.sparse import SparseExtent

MAX_EXTENT_FILES = 512
"""Files of one disk. Each stays open as long as the disk, and a process may usually have 1024 open: enough for 2 TiB
in files of 4 GiB, VMware's larger size, and 1 TiB in those of 2 GiB."""
MIN_DIRECTORY_PAGE = 128
"""Entries of a grain directory read at once where a disk has many files: as many as one of 4 GiB has."""

FLAT_TYPES = frozenset({"FLAT", "VMFS"})
SPARSE_TYPES = frozenset({"SPARSE", "VMFSSPARSE"})
SESPARSE_TYPE = "SESPARSE"
ZERO_TYPE = "ZERO"
DEVICE_TYPES = frozenset({"VMFSRDM", "VMFSRDMP", "VMFSRAW"})
DEVICE_CREATE_TYPES = frozenset(
    {
        "vmfsrdm", "vmfsrdmp", "vmfsrawdevicemap", "vmfspassthroughrawdevicemap", "vmfsraw", "fulldevice",
        "partitioneddevice",
    }
)  # fmt: skip
"""Values of createType, in lower case, of disks that are a physical device or parts of one."""


@dataclass
class ExtentFiles:
    """What a descriptor's lines lead to. `source` is the file that holds the descriptor."""

    source: ByteSource
    related: RelatedFiles
    undo: contextlib.ExitStack
    """Closes the files, if the disk does not come about."""
    segments: list[Segment] = field(default_factory=list)
    sources: dict[str, ByteSource] = field(default_factory=dict)
    """The files that were opened, each once, by the name that the lines give them."""
    grain_extents: list[GrainExtent] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    flat_ranges: dict[str, list[tuple[int, int, int]]] = field(default_factory=dict)
    """File name -> offset, length and line number of each flat extent in it."""

    @property
    def virtual_size(self) -> int:
        """Bytes that all extents together have."""
        return self.segments[-1].end

    @property
    def unit_size(self) -> int:
        """The grain size that all sparse extents have; 0 if there are none or they differ."""
        sizes = {extent.info.unit_size for extent in self.grain_extents}
        return sizes.pop() if len(sizes) == 1 else 0

    @property
    def compressed(self) -> bool:
        """Whether any extent holds compressed grains."""
        return any(extent.info.compressed for extent in self.grain_extents)


def open_extents(
    source: ByteSource, descriptor: Descriptor, related: RelatedFiles, undo: contextlib.ExitStack
) -> ExtentFiles:
    """Open every extent that the descriptor in `source` lists, after a look at all lines before any file is opened.

    Raises ImageError for a line that is not read or that its file does not bear out, and what `related` raises.
    """
    _require_lines(source.name, descriptor)
    files = ExtentFiles(source, related, undo)
    tables = TableCache()
    names = {line.file_name for line in descriptor.extents if line.type != ZERO_TYPE}
    # So that the directories of many files together take no more memory than that of one large file.
    directory_page = max(MIN_DIRECTORY_PAGE, ENTRIES_PER_PAGE // max(len(names), 1))
    start = 0
    for number, line in enumerate(descriptor.extents, 1):
        length = line.sectors * SECTOR
        if line.type == ZERO_TYPE:
            segment = zero_segment(start, length)
        elif line.type in FLAT_TYPES:
            segment = _open_flat(files, number, line, start)
        else:
            extent = _open_grains(files, number, line, tables, directory_page)
            files.grain_extents.append(extent)
            segment = mapped_segment(start, length, extent)
        files.segments.append(segment)
        start = segment.end
    return files


def _require_lines(name: str, descriptor: Descriptor) -> None:
    """Check all that the lines say by themselves."""
    create_type = descriptor.create_type
    if create_type.lower() in DEVICE_CREATE_TYPES:
        raise UnsupportedFeature(
            f"{name}: a disk of type {printable(create_type, 40)} is a physical device and not in a file; copy the "
            "device instead"
        )
    require_plain(name, descriptor)
    if not descriptor.extents:
        raise CorruptImage(f"{name}: no extent line in it: it is no VMDK descriptor, or was cut short")
    names: set[str] = set()
    sparse_names: set[str] = set()
    sectors = 0
    for number, line in enumerate(descriptor.extents, 1):
        where = f"{name}: extent {number} of the descriptor"
        if line.type in DEVICE_TYPES:
            raise UnsupportedFeature(
                f"{where} is of type {line.type}, a raw device map: its data is on a device and not in a file; copy "
                "the device instead"
            )
        if line.type not in FLAT_TYPES | SPARSE_TYPES | {SESPARSE_TYPE, ZERO_TYPE}:
            raise UnsupportedFeature(f"{where} is of type {printable(line.type, 40)!r}, which is not known")
        if line.access == "NOACCESS":
            # VMware and VirtualBox fail reads of such an extent; zeroes or data in its place would be a guess.
            raise UnsupportedFeature(f"{where} is marked NOACCESS: what it holds is not to be read, so the disk is not")
        if line.sectors == 0:
            raise CorruptImage(f"{where} is 0 sectors long")
        sectors += line.sectors
        if sectors > MAX_CAPACITY:
            raise CorruptImage(f"{where} makes the disk {sectors} sectors long, at most {MAX_CAPACITY} are possible")
        if line.offset and line.type != "FLAT":
            raise CorruptImage(f"{where} has offset {line.offset}, which only one of type FLAT may have")
        if line.type == ZERO_TYPE:
            continue
        if line.file_name is None:
            raise CorruptImage(f"{where} is of type {line.type} and names no file")
        if line.file_name in (sparse_names if line.type in FLAT_TYPES else names):
            raise CorruptImage(f"{where} is {printable(line.file_name)!r} again, and a sparse file is one extent only")
        names.add(line.file_name)
        if line.type not in FLAT_TYPES:
            sparse_names.add(line.file_name)
        if len(names) > MAX_EXTENT_FILES:
            raise UnsupportedFeature(
                f"{name}: the disk is split into over {MAX_EXTENT_FILES} files; join them first, for example with "
                "vmware-vdiskmanager or qemu-img convert"
            )


def require_plain(name: str, descriptor: Descriptor) -> None:
    """Raise UnsupportedFeature for an encrypted disk."""
    if any(key.startswith("encryption") for key in descriptor.values):
        raise UnsupportedFeature(f"{name}: the disk is encrypted; decrypt it with the program that encrypted it")


def _open_flat(files: ExtentFiles, number: int, line: ExtentLine, start: int) -> Segment:
    """Take a file as it is: what a guest has written into it says nothing about it."""
    file = _file(files, number, line)
    assert line.file_name is not None
    offset, length = line.offset * SECTOR, line.sectors * SECTOR
    if offset + length > file.size:
        raise TruncatedImage(
            f"{files.source.name}: extent {number} of the descriptor is {length} bytes from offset {offset:#x} of "
            f"{file.name}, which ends at {file.size:#x}: that file is incomplete or not the one that is meant"
        )
    files.flat_ranges.setdefault(line.file_name, []).append((offset, length, number))
    return flat_segment(start, length, file, offset)


def _open_grains(
    files: ExtentFiles, number: int, line: ExtentLine, tables: TableCache, directory_page: int
) -> GrainExtent:
    where = f"{files.source.name}: extent {number} of the descriptor"
    file = _file(files, number, line)
    magic = file.read_at(0, min(8, file.size))
    length = line.sectors * SECTOR
    if line.type == SESPARSE_TYPE:
        if magic != SESPARSE_MAGIC:
            raise CorruptImage(f"{where}: {file.name} is no seSparse extent: its first bytes are {magic.hex(' ')}")
        space = read_sesparse_header(file)
        _require_capacity(where, file, line, space.capacity)
        info = ImageInfo("vmdk", "seSparse", length, unit_size=GRAIN_SECTORS * SECTOR)
        return SeSparseExtent(file, space, info, tables=tables, directory_page=directory_page)
    # As QEMU does: the magic tells which of the two it is, whatever the line says.
    if magic[:4] == COWD_MAGIC:
        header = read_cowd_header(file)
        note_unclean_shutdown(file, header, files.findings)
    elif magic[:4] in (MAGIC, UNFINISHED_MAGIC):
        header = read_complete_header(file, files.findings)
        own = read_embedded_descriptor(file, header)
        if header.capacity == 0 or (own is not None and own.extents):
            raise CorruptImage(
                f"{where}: {file.name} has a descriptor of its own: it is a disk and no extent of another"
            )
    else:
        raise CorruptImage(f"{where}: {file.name} is no sparse extent: its first bytes are {magic.hex(' ')}")
    _require_capacity(where, file, line, header.capacity)
    info = ImageInfo("vmdk", line.type.lower(), length, unit_size=header.grain_size, compressed=header.compressed)
    return SparseExtent(file, header, info, tables=tables, directory_page=directory_page)


def _require_capacity(where: str, file: ByteSource, line: ExtentLine, capacity: int) -> None:
    # A line may well be shorter: VirtualBox rounds the capacity up to the grain and keeps the line exact.
    if line.sectors > capacity:
        raise CorruptImage(f"{where} is {line.sectors} sectors long, and the header of {file.name} says {capacity}")


def _file(files: ExtentFiles, number: int, line: ExtentLine) -> ByteSource:
    """Return the file that a line names, which is opened once however many lines name it."""
    name = line.file_name
    assert name is not None
    known = files.sources.get(name)
    if known is not None:
        return known
    try:
        file = files.related.open(name)
    except (ParentUnavailable, UnsafeReference) as error:
        raise type(error)(f"{files.source.name}: extent {number} of the descriptor: {error}") from error
    files.undo.callback(file.close)
    if _is_same(file, files.source):
        raise UnsafeReference(
            f"{files.source.name}: extent {number} of the descriptor is {printable(name)!r}, the descriptor itself"
        )
    files.sources[name] = file
    return file


def _is_same(file: ByteSource, descriptor: ByteSource) -> bool:
    """Tell whether a file is the one that names it, under whatever name; its size and first bytes decide."""
    length = min(descriptor.size, MAX_DESCRIPTOR_SIZE)
    return file.size == descriptor.size and file.read_at(0, length) == descriptor.read_at(0, length)


def read_complete_header(source: ByteSource, findings: list[Finding]) -> SparseHeader:
    """Read the header of a hosted sparse extent, and the footer that knows the grain directory if there is one.

    Of a header without capacity, whose descriptor names other files, no more is read. Raises ImageError.
    """
    header = read_header(source)
    if header.capacity == 0:
        return header
    if header.overhead * SECTOR > source.size:
        raise TruncatedImage(
            f"{source.name}: the sparse header's overHead ends at {header.overhead * SECTOR:#x}, the file at "
            f"{source.size:#x}: the file is incomplete"
        )
    note_unclean_shutdown(source, header, findings)
    return read_footer(source, header) if header.gd_offset == GD_AT_END else header


def read_embedded_descriptor(source: ByteSource, header: SparseHeader) -> Descriptor | None:
    """Read the descriptor inside a hosted sparse extent; None if there is none, or no text where it should be."""
    if not header.descriptor_offset:
        return None
    offset, size = header.descriptor_offset * SECTOR, header.descriptor_size * SECTOR
    if offset + size > source.size:
        raise TruncatedImage(
            f"{source.name}: the descriptor at offset {offset:#x} is {size} bytes long, the file ends at "
            f"{source.size:#x}: the file is incomplete"
        )
    if size > MAX_DESCRIPTOR_SIZE:
        raise CorruptImage(
            f"{source.name}: the descriptor is {size} bytes long, at most {MAX_DESCRIPTOR_SIZE} are expected"
        )
    descriptor = parse_descriptor(source.read_at(offset, size), source.name)
    return descriptor if descriptor.values or descriptor.extents else None


def note_unclean_shutdown(source: ByteSource, header: SparseHeader, findings: list[Finding]) -> None:
    """Note in `findings` if the header says that its writer did not close the file."""
    if header.unclean_shutdown:
        findings.append(
            Finding(
                "vmdk-unclean-shutdown",
                Severity.WARNING,
                f"{source.name}: the header says that the disk was not closed cleanly",
                "run diskfs verify",
            )
        )
