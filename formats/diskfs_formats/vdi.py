"""VDI 1.1: dynamic, fixed and differencing.

There is no published specification; the layout is that of VirtualBox (VDICore.h), with its field names. Little-endian;
offsets and sizes in bytes; UUIDs in Microsoft's mixed order. The block map has one 32-bit index for each block of the
disk, and the blocks follow it in the order in which they were first written.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

from construct import Bytes, Const, Int32ul, Int64ul, Struct

from diskfs_formats.binary import EntryTable, align_up, is_power_of_two, parse_structure
from diskfs_formats.driver import AbsentParent, DiskImage, ImageInfo, Match, ProbeWindow, RelatedFiles
from diskfs_formats.errors import CorruptImage, DiskfsError, ParentUnavailable, TruncatedImage, UnsupportedFeature
from diskfs_formats.extents import Extent, ExtentKind, Stored
from diskfs_formats.findings import Finding, Severity
from diskfs_formats.mapped import MappedImage
from diskfs_formats.source import ByteSource
from diskfs_formats.units import MAX_FINDINGS, check_units, limited

SIGNATURE_OFFSET = 64
"""Before it is a text for people, which names the program and differs."""
SIGNATURE = b"\x7f\x10\xda\xbe"
VERSION = 0x00010001

HEADER = Struct(
    "u32Signature" / Const(SIGNATURE),
    "u32Version" / Int32ul,
    "cbHeader" / Int32ul,  # from this field on
    "u32Type" / Int32ul,
    "fFlags" / Int32ul,
    "szComment" / Bytes(256),
    "offBlocks" / Int32ul,
    "offData" / Int32ul,
    "cCylinders" / Int32ul,
    "cHeads" / Int32ul,
    "cSectors" / Int32ul,
    "cbSector" / Int32ul,
    "u32Dummy" / Int32ul,
    "cbDisk" / Int64ul,
    "cbBlock" / Int32ul,
    "cbBlockExtra" / Int32ul,
    "cBlocks" / Int32ul,
    "cBlocksAllocated" / Int32ul,
    "uuidCreate" / Bytes(16),
    "uuidModify" / Bytes(16),
    "uuidLinkage" / Bytes(16),
    "uuidParentModify" / Bytes(16),
)
assert SIGNATURE_OFFSET + HEADER.sizeof() == 456
CB_HEADER_OFFSET = 72
MIN_HEADER_SIZE = 0x180
"""What qemu writes; VirtualBox writes 16 bytes more, a second geometry."""

TYPES = {1: "dynamic", 2: "fixed", 4: "differencing"}
TYPE_FIXED = 2
TYPE_UNDO = 3
TYPE_DIFFERENCING = 4

SECTOR = 512
MIN_BLOCK_SIZE, MAX_BLOCK_SIZE = 4096, 1 << 30
"""Every known file has blocks of 1 MiB, the only size that qemu reads; VirtualBox can be told to use others."""
MAX_BLOCKS = 0x1FFFFF80
"""qemu's limit: a map of 2 GiB, 512 TiB in blocks of 1 MiB."""
NO_UUID = UUID(int=0)

_FREE = 0xFFFFFFFF
_ZERO = 0xFFFFFFFE
_KIND_OF_ENTRY = {_FREE: ExtentKind.HOLE, _ZERO: ExtentKind.ZERO}
MAX_BLOCKS_TRACKED = 1 << 28
"""Blocks of a file whose use is kept track of, a bit each: 32 MiB of memory, 256 TiB in blocks of 1 MiB."""
MAX_RUN = 16
"""Blocks that one lookup joins: 16 MiB, and cheap to walk again for the next one."""


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header. Offsets and sizes in bytes; `virtual_size` is a whole number of sectors."""

    type: int
    blocks_offset: int
    data_offset: int
    disk_size: int
    block_size: int
    block_extra: int
    blocks: int
    blocks_allocated: int
    uuid_create: UUID
    uuid_modify: UUID
    uuid_linkage: UUID
    uuid_parent_modify: UUID

    @property
    def variant(self) -> str:
        """The type in words."""
        return TYPES[self.type]

    @property
    def virtual_size(self) -> int:
        """What the guest sees: a disk size within a sector counts as the whole sector, as qemu has it."""
        return align_up(self.disk_size, SECTOR)

    @property
    def stored_block_size(self) -> int:
        """Bytes of a block in the file, with the extra ones before it."""
        return self.block_extra + self.block_size


class VdiImage(MappedImage):
    """A VDI. A bad entry of the block map, or a block past the end of the file, fails the reads that need it."""

    def __init__(self, source: ByteSource, header: Header, info: ImageInfo, parent: DiskImage | None = None) -> None:
        super().__init__(source.name, info, [source], parent)
        self._source = source
        self._header = header
        self._block_size = header.block_size
        self._map = EntryTable(source, header.blocks_offset, header.blocks)

    @property
    def header(self) -> Header:
        """The header."""
        return self._header

    @property
    def file_size(self) -> int:
        """Bytes of the file."""
        return self._source.size

    @property
    def block_map(self) -> EntryTable:
        """The block map, for checks."""
        return self._map

    def lookup(self, offset: int, /) -> Extent:
        block = offset // self._block_size
        page, at = divmod(block, self._map.entries_per_page)
        entries = self._map.page(page)
        entry = entries[at]
        kind = _KIND_OF_ENTRY.get(entry, ExtentKind.DATA)
        is_plain = kind is ExtentKind.DATA
        # With extra bytes before each block, no two blocks are stored as one run.
        longest = 1 if is_plain and self._header.block_extra else MAX_RUN
        limit = min(at + longest, len(entries))
        end = at + 1
        while end < limit and entries[end] == (entry + end - at if is_plain else entry):
            end += 1
        start = block * self._block_size
        stop = min(start + (end - at) * self._block_size, self._size)
        if not is_plain:
            return Extent(start, stop - start, kind)
        return self._stored(start, stop, block, entry)

    def lookup_if_ready(self, offset: int, /) -> Extent | None:
        return self.lookup(offset) if self._map.is_ready(offset // self._block_size) else None

    def _stored(self, start: int, end: int, block: int, index: int) -> Extent:
        """Return a run of stored blocks; only the part that the file has and the header knows of."""
        where = f"{self._name}: block {block}: block map entry is {index:#x}"
        header = self._header
        if index >= header.blocks_allocated:
            raise CorruptImage(f"{where}, but only {header.blocks_allocated} blocks are allocated")
        end = min(end, start + (header.blocks_allocated - index) * self._block_size)
        stored_at = header.data_offset + index * header.stored_block_size + header.block_extra
        available = self._source.size - stored_at
        if available < end - start:
            # A run is cut at the block that leaves the file, so that only the reads of that block fail.
            whole = max(available, 0) // self._block_size * self._block_size
            if whole == 0:
                raise TruncatedImage(
                    f"{where}: {min(self._block_size, end - start)} bytes at offset {stored_at:#x}, the file ends at "
                    f"{self._source.size:#x}: the file is incomplete"
                )
            end = start + whole
        return Extent(start, end - start, ExtentKind.DATA, Stored(self._source, stored_at, end - start))


class VdiDriver:
    """Reads dynamic, fixed and differencing VDI files."""

    name = "vdi"

    def probe(self, window: ProbeWindow, /) -> Match:
        found = window.head[SIGNATURE_OFFSET : SIGNATURE_OFFSET + len(SIGNATURE)]
        return Match.SIGNATURE if found == SIGNATURE else Match.NO

    def open(self, source: ByteSource, related: RelatedFiles, /) -> VdiImage:
        header = read_header(source)
        if header.type != TYPE_DIFFERENCING:
            return _image(source, header, None)
        parent = _open_parent(source, header, related)
        try:
            return _image(source, header, parent)
        except BaseException:
            parent.close()
            raise

    def check(self, source: ByteSource, related: RelatedFiles, /) -> Iterator[Finding]:
        """Examine this file. Of its parent, only whether it is the right one: it is a file to check by itself."""
        header = read_header(source)
        if header.type == TYPE_DIFFERENCING:
            try:
                _open_parent(source, header, related).close()
            except DiskfsError as error:
                yield Finding("vdi-parent", Severity.ERROR, str(error))
        image = _image(source, header, None)
        yield from image.info.findings
        yield from _check_blocks(image)


def _image(source: ByteSource, header: Header, parent: DiskImage | None) -> VdiImage:
    info = ImageInfo(
        format=VdiDriver.name,
        variant=header.variant,
        virtual_size=header.virtual_size,
        unit_size=header.block_size,
        has_parent=header.type == TYPE_DIFFERENCING,
        findings=tuple(_notices(source, header)),
    )
    return VdiImage(source, header, info, parent)


def read_header(source: ByteSource) -> Header:
    """Read and check the header; raises ImageError."""
    where = f"{source.name}: VDI header"
    raw = parse_structure(HEADER, source, SIGNATURE_OFFSET, "VDI header")
    if raw.u32Version != VERSION:
        raise UnsupportedFeature(f"{where}: version {raw.u32Version:#010x} is not read, {VERSION:#010x} (1.1) is")
    if raw.u32Type == TYPE_UNDO:
        raise UnsupportedFeature(f"{where}: u32Type is 3: an undo image, which is not read")
    if raw.u32Type not in TYPES:
        raise CorruptImage(f"{where}: u32Type is {raw.u32Type}, expected 1 (dynamic), 2 (fixed) or 4 (differencing)")
    if raw.cbSector != SECTOR:
        raise UnsupportedFeature(f"{where}: sectors of {raw.cbSector} bytes are not read, {SECTOR} are")
    if not is_power_of_two(raw.cbBlock) or not MIN_BLOCK_SIZE <= raw.cbBlock <= MAX_BLOCK_SIZE:
        raise CorruptImage(
            f"{where}: cbBlock is {raw.cbBlock}, expected a power of two from {MIN_BLOCK_SIZE} to {MAX_BLOCK_SIZE}"
        )
    if raw.cbBlockExtra % SECTOR:
        raise UnsupportedFeature(f"{where}: cbBlockExtra is {raw.cbBlockExtra}, only multiples of {SECTOR} are read")
    if raw.cBlocks > MAX_BLOCKS:
        raise CorruptImage(f"{where}: cBlocks is {raw.cBlocks}, at most {MAX_BLOCKS} are possible")
    if raw.cBlocks * raw.cbBlock < raw.cbDisk:
        raise CorruptImage(
            f"{where}: cbDisk is {raw.cbDisk}, but {raw.cBlocks} blocks of {raw.cbBlock} bytes have fewer bytes"
        )
    if raw.cBlocksAllocated > raw.cBlocks:
        raise CorruptImage(f"{where}: cBlocksAllocated is {raw.cBlocksAllocated}, there are only {raw.cBlocks} blocks")
    _require_layout(
        source,
        where,
        header_size=raw.cbHeader,
        map_offset=raw.offBlocks,
        map_size=raw.cBlocks * 4,
        data_offset=raw.offData,
    )
    header = Header(
        type=raw.u32Type,
        blocks_offset=raw.offBlocks,
        data_offset=raw.offData,
        disk_size=raw.cbDisk,
        block_size=raw.cbBlock,
        block_extra=raw.cbBlockExtra,
        blocks=raw.cBlocks,
        blocks_allocated=raw.cBlocksAllocated,
        uuid_create=UUID(bytes_le=raw.uuidCreate),
        uuid_modify=UUID(bytes_le=raw.uuidModify),
        uuid_linkage=UUID(bytes_le=raw.uuidLinkage),
        uuid_parent_modify=UUID(bytes_le=raw.uuidParentModify),
    )
    if header.type == TYPE_DIFFERENCING and header.uuid_linkage == NO_UUID:
        raise CorruptImage(f"{where}: a differencing image whose uuidLinkage is 0: it does not say who its parent is")
    if header.type != TYPE_DIFFERENCING and (header.uuid_linkage, header.uuid_parent_modify) != (NO_UUID, NO_UUID):
        raise CorruptImage(
            f"{where}: a {header.variant} image that names a parent (uuidLinkage {header.uuid_linkage}, "
            f"uuidParentModify {header.uuid_parent_modify}): whether it stands alone is not clear"
        )
    return header


def _require_layout(
    source: ByteSource, where: str, *, header_size: int, map_offset: int, map_size: int, data_offset: int
) -> None:
    """Raise unless header, block map and data follow one another, and the file has the whole map."""
    if header_size < MIN_HEADER_SIZE:
        raise CorruptImage(f"{where}: cbHeader is {header_size}, expected at least {MIN_HEADER_SIZE}")
    for field, offset in (("offBlocks", map_offset), ("offData", data_offset)):
        if offset % SECTOR:
            raise CorruptImage(f"{where}: {field} is {offset:#x}, expected a multiple of {SECTOR}")
    if map_offset < CB_HEADER_OFFSET + header_size:
        raise CorruptImage(
            f"{where}: offBlocks is {map_offset:#x}, the header ends at {CB_HEADER_OFFSET + header_size:#x}"
        )
    if data_offset < map_offset + map_size:
        raise CorruptImage(f"{where}: offData is {data_offset:#x}, the block map ends at {map_offset + map_size:#x}")
    if map_offset + map_size > source.size:
        raise TruncatedImage(
            f"{source.name}: the block map at offset {map_offset:#x} needs {map_size} bytes, the file ends at "
            f"{source.size:#x}: the file is incomplete or its header is damaged"
        )


def _open_parent(source: ByteSource, header: Header, related: RelatedFiles) -> DiskImage:
    """Open the parent and make sure that it is the disk, in the state, that this one was made from."""
    if header.uuid_linkage == header.uuid_create:
        raise CorruptImage(f"{source.name}: the differencing image names itself, {header.uuid_create}, as its parent")
    # A VDI knows its parent's UUID and no name: only the user can say which file it is.
    parent = related.open_parent([], VdiDriver.name)
    if isinstance(parent, AbsentParent):
        return parent
    try:
        _require_right_parent(source, header, parent)
    except BaseException:
        parent.close()
        raise
    return parent


def _require_right_parent(source: ByteSource, header: Header, parent: DiskImage) -> None:
    if not isinstance(parent, VdiImage):
        raise ParentUnavailable(f"{source.name}: its parent {parent.name} is no VDI; name the right file")
    found = parent.header
    if found.uuid_create != header.uuid_linkage:
        raise ParentUnavailable(
            f"{source.name}: {parent.name} is not its parent: the UUID is {found.uuid_create}, expected "
            f"{header.uuid_linkage}"
        )
    if header.uuid_parent_modify not in (NO_UUID, found.uuid_modify):
        raise ParentUnavailable(
            f"{source.name}: its parent {parent.name} was changed since: the uuidModify is {found.uuid_modify}, "
            f"expected {header.uuid_parent_modify}"
        )


def _notices(source: ByteSource, header: Header) -> Iterator[Finding]:
    if header.disk_size % SECTOR:
        yield Finding(
            "vdi-partial-sector",
            Severity.WARNING,
            f"{source.name}: cbDisk is {header.disk_size}, no whole number of {SECTOR}-byte sectors; the last sector "
            "is shown whole",
        )


def _check_blocks(image: VdiImage) -> Iterator[Finding]:
    """Yield what is wrong with the block map and with the blocks."""
    count = 0
    for count, finding in enumerate(limited(_check_map(image), image.name, "vdi-block-map"), 1):  # noqa: B007
        yield finding
    if count > MAX_FINDINGS:
        # A few blocks that stand for thousands would be read again and again.
        yield Finding("vdi-block", Severity.ERROR, f"{image.name}: the blocks were not read: the block map is damaged")
        return
    yield from check_units(image, "vdi-block")


def _check_map(image: VdiImage) -> Iterator[Finding]:
    """Yield a finding for each block that is used twice, and for a fixed image whose blocks are out of order."""
    header, entries = image.header, image.block_map
    # Blocks past the end of the file are found when they are read.
    stored = min(header.blocks_allocated, -(-max(image.file_size - header.data_offset, 0) // header.stored_block_size))
    if stored > MAX_BLOCKS_TRACKED:
        yield Finding(
            "vdi-block-map",
            Severity.INFO,
            f"{image.name}: over {MAX_BLOCKS_TRACKED} blocks: whether any is used twice was not examined",
        )
        return
    used = bytearray(-(-stored // 8))
    in_order = True
    for page in range(-(-header.blocks // entries.entries_per_page)):
        for block, index in enumerate(entries.page(page), page * entries.entries_per_page):
            in_order = in_order and index == block
            if index >= stored:
                continue
            if used[index >> 3] >> (index & 7) & 1:
                yield Finding(
                    "vdi-block-map",
                    Severity.ERROR,
                    f"{image.name}: block {block}: block map entry is {index:#x}, which another block uses too",
                    "one of the two was overwritten by the other; restore the image from a copy",
                )
            used[index >> 3] |= 1 << (index & 7)
    if header.type == TYPE_FIXED and not in_order:
        yield Finding(
            "vdi-fixed-order",
            Severity.WARNING,
            f"{image.name}: the blocks of a fixed image are not all there in the disk's order; the block map says which"
            " is where, and is followed",
        )
