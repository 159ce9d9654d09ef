"""The index file of a disk in an overlay: its header, and pages that say which blocks the overlay has.

Specification: docs/OVERLAY.md. Little-endian. A page is one sector, so that it is written wholly or not at all, and
rewritten in its place without a log: all that a page says is true of data that was synced before.
"""

import struct
from dataclasses import dataclass
from uuid import UUID

from google_crc32c import extend

from diskfs.errors import DamagedOverlay, NewerOverlay, NotAnOverlay

VERSION = 1
"""Of the whole layout; a reader refuses a higher one."""
HEADER_MAGIC = b"dfsindex"
HEADER = struct.Struct("<8sII16sIIQ")
"""Magic, CRC-32C, version, overlay id, number of the disk, block size, virtual size; zeroes up to a sector."""
HEADER_SIZE = 512
PAGES_OFFSET = 4096
"""Where page 0 begins; pages follow each other."""
PAGE_MAGIC = b"dfpg"
PAGE_SIZE = 512
PAGE = struct.Struct("<4sIQ16s")
"""Magic, CRC-32C, number of the page, overlay id; then the states, two bits each."""
BLOCKS_PER_PAGE = (PAGE_SIZE - PAGE.size) * 4
"""1920 blocks."""
BLOCK_SIZE = 4096
"""Bytes; docs/decisions/0017-overlay-store.md has the measurements."""
BLOCK_SIZES = tuple(512 << shift for shift in range(8))
"""What a header may state: 512 bytes to 64 KiB."""

GUARD_MAGIC = b"dfgd"
PAGES_PER_GUARD = (PAGE_SIZE - PAGE.size) * 8
"""3840 pages: a guard has one bit for each, set once the page is in the file for good. Guards follow the pages."""

ABSENT, PRESENT, ZERO = 0, 1, 2
"""A block that only the source has; one that the data file has; one that reads as zero. 3 is not used."""
ABSENT_PAGE = bytes(PAGE_SIZE)
"""A page, or a guard, that was never written."""
STATES = tuple(bytes((state,)) * BLOCKS_PER_PAGE for state in (ABSENT, PRESENT, ZERO))
"""The states of a page whose blocks are all alike, as most are."""
_DIGITS = bytes.maketrans(b"\0\1\2\3", b"0123")
_UNPACKED = tuple(bytes((byte & 3, byte >> 2 & 3, byte >> 4 & 3, byte >> 6)) for byte in range(256))
_UNIFORM = {bytes((state * 0b01010101,)) * (BLOCKS_PER_PAGE // 4): states for state, states in enumerate(STATES)}
_PACKED_UNIFORM = {states: packed for packed, states in _UNIFORM.items()}
_RESERVED_PAIRS = bytes(byte for byte in range(256) if 3 in _UNPACKED[byte])
assert (BLOCKS_PER_PAGE, PAGES_PER_GUARD) == (1920, 3840)


@dataclass(frozen=True, slots=True)
class IndexHeader:
    """What an index file says of itself. Sizes in bytes."""

    overlay_id: UUID
    disk: int
    block_size: int
    virtual_size: int

    @property
    def block_count(self) -> int:
        """Blocks of the disk, the last of which may be cut short."""
        return -(-self.virtual_size // self.block_size)

    @property
    def page_count(self) -> int:
        """Pages of the index."""
        return -(-self.block_count // BLOCKS_PER_PAGE)

    @property
    def guard_count(self) -> int:
        """Guards of the index."""
        return -(-self.page_count // PAGES_PER_GUARD)

    @property
    def guards_offset(self) -> int:
        """Where guard 0 begins."""
        return page_offset(self.page_count)

    @property
    def file_size(self) -> int:
        """The size of the whole index file."""
        return self.guards_offset + self.guard_count * PAGE_SIZE

    def pack(self) -> bytes:
        """Return the sector that states this."""
        rest = (VERSION, self.overlay_id.bytes, self.disk, self.block_size, self.virtual_size)
        body = HEADER.pack(HEADER_MAGIC, 0, *rest).ljust(HEADER_SIZE, b"\0")
        return HEADER.pack(HEADER_MAGIC, extend(0, body[12:]), *rest).ljust(HEADER_SIZE, b"\0")


def parse_header(sector: bytes, name: str) -> IndexHeader:
    """Return what the first sector of an index states; raises NotAnOverlay, NewerOverlay or DamagedOverlay."""
    if len(sector) < HEADER_SIZE:
        raise DamagedOverlay(f"{name}: header: {len(sector)} bytes are there, expected {HEADER_SIZE}")
    magic, checksum, version, overlay_id, disk, block_size, virtual_size = HEADER.unpack_from(sector)
    if magic != HEADER_MAGIC:
        raise NotAnOverlay(f"{name}: it begins with {magic!r}, expected {HEADER_MAGIC!r}: it is no index of an overlay")
    if version > VERSION:
        raise NewerOverlay(f"{name}: it has version {version}, and this diskfs reads up to {VERSION}; use a later one")
    computed = extend(0, sector[12:HEADER_SIZE])
    if checksum != computed:
        raise DamagedOverlay(f"{name}: header at 0x0: CRC-32C {checksum:#010x}, expected {computed:#010x}")
    if version != VERSION or block_size not in BLOCK_SIZES or virtual_size >= 1 << 62:
        raise DamagedOverlay(
            f"{name}: header at 0x0: version {version}, blocks of {block_size} and a disk of {virtual_size} bytes "
            "cannot be"
        )
    return IndexHeader(UUID(bytes=overlay_id), disk, block_size, virtual_size)


def page_offset(number: int) -> int:
    """Return where a page lies in the index file."""
    return PAGES_OFFSET + number * PAGE_SIZE


def pack_page(overlay_id: bytes, number: int, states: bytes | bytearray) -> bytes:
    """Return the sector for the states of a page's blocks, one byte each."""
    packed = _PACKED_UNIFORM.get(bytes(states))
    if packed is not None:
        return _pack(PAGE_MAGIC, overlay_id, number, packed)
    # Reading the states as the digits of a number to the base 4 packs them at the speed of C.
    packed = int(states[::-1].translate(_DIGITS), 4).to_bytes(BLOCKS_PER_PAGE // 4, "little")
    return _pack(PAGE_MAGIC, overlay_id, number, packed)


def pack_guard(overlay_id: bytes, number: int, bits: bytes | bytearray) -> bytes:
    """Return the sector for the bits of a guard."""
    return _pack(GUARD_MAGIC, overlay_id, number, bytes(bits))


def _pack(magic: bytes, overlay_id: bytes, number: int, body: bytes) -> bytes:
    checksum = extend(extend(0, number.to_bytes(8, "little") + overlay_id), body)
    return PAGE.pack(magic, checksum, number, overlay_id) + body


def parse_page(sector: bytes, overlay_id: bytes, number: int, name: str) -> bytes:
    """Return the states of a page's blocks, one byte each; a page that was never written has none.

    Raises DamagedOverlay, which names the page.
    """
    if sector == ABSENT_PAGE:
        return STATES[ABSENT]
    packed = checked_page(sector, overlay_id, number, name)
    return _UNIFORM.get(packed) or b"".join([_UNPACKED[byte] for byte in packed])


def checked_page(sector: bytes, overlay_id: bytes, number: int, name: str) -> bytes:
    """Return the packed states of a page that was written; raises DamagedOverlay, which names the page."""
    where = f"{name}: page {number} at {page_offset(number):#x}"
    packed = _body(sector, PAGE_MAGIC, overlay_id, number, where)
    if packed.translate(None, _RESERVED_PAIRS) != packed:
        raise DamagedOverlay(f"{where}: a block has the state 3, which has no meaning")
    return packed


def parse_guard(sector: bytes, overlay_id: bytes, number: int, where: str) -> bytes:
    """Return the bits of a guard, the lowest of a byte first; one that was never written has none.

    Raises DamagedOverlay, which begins with `where`.
    """
    if sector == ABSENT_PAGE:
        return bytes(PAGE_SIZE - PAGE.size)
    return _body(sector, GUARD_MAGIC, overlay_id, number, where)


def _body(sector: bytes, magic: bytes, overlay_id: bytes, number: int, where: str) -> bytes:
    if len(sector) != PAGE_SIZE:
        raise DamagedOverlay(f"{where}: {len(sector)} bytes are there, expected {PAGE_SIZE}")
    found, checksum, stated, owner = PAGE.unpack_from(sector)
    if found != magic:
        raise DamagedOverlay(f"{where}: it begins with {found!r}, expected {magic!r}")
    computed = extend(0, sector[8:])
    if checksum != computed:
        raise DamagedOverlay(f"{where}: CRC-32C {checksum:#010x}, expected {computed:#010x}")
    if stated != number or owner != overlay_id:
        raise DamagedOverlay(
            f"{where}: it has the number {stated} and is of overlay {UUID(bytes=owner)}, expected {number} and "
            f"{UUID(bytes=overlay_id)}"
        )
    return sector[PAGE.size :]
