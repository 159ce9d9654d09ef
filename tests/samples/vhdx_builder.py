"""Packs VHDX files by hand from [MS-VHDX] 8.0, independently of the driver, so that any field can be any value.

`VhdxBuilder` lays a file out as Hyper-V does: log at 1 MiB, metadata at 2 MiB, BAT from 3 MiB, blocks after it. What
it packs can be changed in its attributes before `source()` or `build()` puts the pieces together.
"""

import functools
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from diskfs_formats.driver import DiskImage, FormatDriver
from diskfs_formats.errors import OutOfRange, ParentUnavailable
from diskfs_formats.source import ByteSource

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40

BAT_GUID = UUID("2DC27766-F623-4200-9D64-115E9BFD4A08")
METADATA_GUID = UUID("8B7CA206-4790-4B9A-B8FE-575F050F886E")
FILE_PARAMETERS = UUID("CAA16737-FA36-4D43-B3B6-33F0AA44E76B")
VIRTUAL_DISK_SIZE = UUID("2FA54224-CD1B-4876-B211-5DBED83BF4B8")
VIRTUAL_DISK_ID = UUID("BECA12AB-B2E6-4523-93EF-C309E000C746")
LOGICAL_SECTOR_SIZE = UUID("8141BF1D-A96F-4709-BA47-F233A8FAAB5F")
PHYSICAL_SECTOR_SIZE = UUID("CDA348C7-445D-4471-9CC9-E9885251C556")
PARENT_LOCATOR = UUID("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C")
VHDX_LOCATOR = UUID("B04AEFB7-D19E-4A81-B789-25B8E9445913")
ZERO_GUID = UUID(int=0)
DATA_WRITE_GUID = UUID("11111111-2222-3333-4444-555555555555")
LOG_GUID = UUID("99999999-8888-7777-6666-555555555555")
UNKNOWN_GUID = UUID("DEADBEEF-0000-4000-8000-000000000001")

NOT_PRESENT, UNDEFINED, ZERO, UNMAPPED, FULLY_PRESENT, PARTIALLY_PRESENT = 0, 1, 2, 3, 6, 7
REQUIRED = 4
IS_USER = 1


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return table


_CRC_TABLE = _crc_table()


@functools.lru_cache(maxsize=4096)
def crc32c(data: bytes) -> int:
    """CRC-32C of `data`, bit by bit from the polynomial; "123456789" gives 0xE3069283."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


assert crc32c(b"123456789") == 0xE3069283


def with_checksum(data: bytes) -> bytes:
    """Return a structure with its checksum (bytes 4 to 8) put right."""
    blank = data[:4] + bytes(4) + data[8:]
    return data[:4] + struct.pack("<I", crc32c(blank)) + data[8:]


def pack_header(
    *,
    sequence_number: int = 1,
    data_write_guid: UUID = DATA_WRITE_GUID,
    log_guid: UUID = ZERO_GUID,
    log_version: int = 0,
    version: int = 1,
    log_length: int = MIB,
    log_offset: int = MIB,
    signature: bytes = b"head",
    reserved: bytes = b"",
) -> bytes:
    """One 4 KiB header, its checksum right."""
    data = struct.pack(
        "<4sIQ16s16s16sHHIQ",
        signature,
        0,
        sequence_number,
        bytes(range(16)),
        data_write_guid.bytes_le,
        log_guid.bytes_le,
        log_version,
        version,
        log_length,
        log_offset,
    )
    assert len(data) == 80
    return with_checksum((data + reserved).ljust(4096, b"\0"))


def pack_region_table(entries: Iterable[tuple[UUID, int, int, int]], *, count: int | None = None) -> bytes:
    """One 64 KiB region table of (guid, offset, length, required), its checksum right."""
    packed = [struct.pack("<16sQII", guid.bytes_le, *rest) for guid, *rest in entries]
    data = struct.pack("<4sIII", b"regi", 0, len(packed) if count is None else count, 0) + b"".join(packed)
    return with_checksum(data.ljust(64 * KIB, b"\0")[: 64 * KIB])


@dataclass
class Item:
    """A metadata item; offset and length are chosen when packing unless given."""

    guid: UUID
    data: bytes
    flags: int = REQUIRED
    offset: int | None = None
    length: int | None = None


def pack_metadata(items: Sequence[Item], *, count: int | None = None, signature: bytes = b"metadata") -> bytes:
    """The used part of a metadata region: table and items."""
    table = struct.pack("<8sHH20s", signature, 0, len(items) if count is None else count, b"")
    stored = b""
    for item in items:
        offset = 64 * KIB + len(stored) if item.offset is None else item.offset
        length = len(item.data) if item.length is None else item.length
        table += struct.pack("<16sIIII", item.guid.bytes_le, offset, length, item.flags, 0)
        stored += item.data
    return table.ljust(64 * KIB, b"\0")[: 64 * KIB] + stored


def pack_locator(pairs: Sequence[tuple[str, str]], *, kind: UUID = VHDX_LOCATOR, count: int | None = None) -> bytes:
    """A parent locator item."""
    head = struct.pack("<16sHH", kind.bytes_le, 0, len(pairs) if count is None else count)
    at = len(head) + 12 * len(pairs)
    entries, texts = b"", b""
    for key, value in pairs:
        key_bytes, value_bytes = key.encode("utf-16-le", "surrogatepass"), value.encode("utf-16-le", "surrogatepass")
        entries += struct.pack("<IIHH", at, at + len(key_bytes), len(key_bytes), len(value_bytes))
        texts += key_bytes + value_bytes
        at += len(key_bytes) + len(value_bytes)
    return head + entries + texts


def bat_entry(state: int, offset: int = 0) -> int:
    """A BAT entry; `offset` in bytes, a multiple of 1 MiB."""
    assert offset % MIB == 0
    return state | offset


@dataclass(frozen=True)
class Zeros:
    """A zero descriptor of a log entry."""

    offset: int
    length: int


@dataclass(frozen=True)
class Sector:
    """A data descriptor of a log entry and its 4 KiB."""

    offset: int
    data: bytes


def pack_log_entry(
    updates: Sequence[Zeros | Sector],
    *,
    sequence_number: int,
    tail: int,
    log_guid: UUID = LOG_GUID,
    flushed: int = 4 * MIB,
    last: int = 4 * MIB,
    padding: int = 0,
    count: int | None = None,
    length: int | None = None,
) -> bytes:
    """A log entry with its checksum right: header, descriptors, data sectors."""
    descriptors, sectors = b"", b""
    for update in updates:
        if isinstance(update, Zeros):
            descriptors += struct.pack("<4sIQQQ", b"zero", 0, update.length, update.offset, sequence_number)
        else:
            assert len(update.data) == 4096
            descriptors += struct.pack(
                "<4s4s8sQQ", b"desc", update.data[4092:], update.data[:8], update.offset, sequence_number
            )
            sectors += struct.pack(
                "<4sI4084sI", b"data", sequence_number >> 32, update.data[8:4092], sequence_number & 0xFFFFFFFF
            )
    described = 64 + len(descriptors)
    body = bytes(-described % 4096) + sectors + bytes(padding)
    total = described + len(body) if length is None else length
    head = struct.pack(
        "<4sIIIQII16sQQ",
        b"loge",
        0,
        total,
        tail,
        sequence_number,
        len(updates) if count is None else count,
        0,
        log_guid.bytes_le,
        flushed,
        last,
    )
    assert len(head) == 64
    return with_checksum(head + descriptors + body)


class SparseSource:
    """A source of any size that holds a few pieces and is zero elsewhere; counts what is asked of it."""

    def __init__(self, pieces: dict[int, bytes], size: int, name: str = "sparse.vhdx") -> None:
        self._pieces = sorted((offset, data) for offset, data in pieces.items() if data)
        self._name = name
        self._size = size
        self.requests = 0
        self.bytes_read = 0
        self.is_closed = False

    @property
    def name(self) -> str:
        return self._name

    @property
    def size(self) -> int:
        return self._size

    def read_at(self, offset: int, length: int, /) -> bytes:
        if offset < 0 or length < 0 or offset + length > self._size:
            raise OutOfRange(f"{self._name}: {length} bytes at {offset}")
        self.requests += 1
        self.bytes_read += length
        end = offset + length
        for start, data in self._pieces:
            if start <= offset and end <= start + len(data):
                return data[offset - start : end - start]
        buffer = bytearray(length)
        for start, data in self._pieces:
            first, last = max(start, offset), min(start + len(data), end)
            if first < last:
                buffer[first - offset : last - offset] = data[first - start : last - start]
        return bytes(buffer)

    def read_if_ready(self, offset: int, length: int, /) -> bytes:
        return self.read_at(offset, length)

    def close(self) -> None:
        self.is_closed = True


class ParentFiles:
    """RelatedFiles for tests: parents by name, opened by `driver`; remembers what was asked for."""

    def __init__(self, driver: FormatDriver, files: Mapping[str, Callable[[], ByteSource]]) -> None:
        self._driver = driver
        self._files = files
        self.asked: list[tuple[tuple[str, ...], str | None]] = []
        self.opened: list[DiskImage] = []

    def open(self, file_name: str, /) -> ByteSource:
        raise ParentUnavailable(f"{file_name!r} is not a disk")

    def open_parent(self, file_names: Sequence[str], format_name: str | None, /) -> DiskImage:
        self.asked.append((tuple(file_names), format_name))
        for name in file_names:
            if name in self._files:
                self.opened.append(self._driver.open(self._files[name](), self))
                return self.opened[-1]
        raise ParentUnavailable(f"none of {list(file_names)} is here")


@dataclass
class VhdxBuilder:
    """A VHDX to be. Blocks are appended in the order in which they are put."""

    virtual_size: int
    block_size: int = MIB
    sector_size: int = 512
    physical_sector_size: int = 512
    parameter_bits: int = 0
    """Bit 0 LeaveBlockAllocated, bit 1 HasParent."""
    locator: bytes | None = None
    data_write_guid: UUID = DATA_WRITE_GUID
    log_guid: UUID = ZERO_GUID
    log_length: int = MIB
    bat: dict[int, int] = field(default_factory=dict)
    pieces: dict[int, bytes] = field(default_factory=dict)
    file_size: int | None = None
    """Chosen when packing unless given."""

    def __post_init__(self) -> None:
        self.metadata_offset = MIB + self.log_length
        self.bat_offset = self.metadata_offset + MIB
        self.chunk_ratio = (1 << 23) * self.sector_size // self.block_size
        blocks = -(-self.virtual_size // self.block_size)
        chunks = -(-blocks // self.chunk_ratio)
        self.bat_length = -(-chunks * (self.chunk_ratio + 1) * 8 // MIB) * MIB
        self.next_free = self.bat_offset + self.bat_length
        common = {
            "data_write_guid": self.data_write_guid,
            "log_guid": self.log_guid,
            "log_length": self.log_length,
        }
        self.headers = [
            pack_header(sequence_number=number, **common)  # type: ignore[arg-type]  # a plain table of keywords
            for number in (6, 7)
        ]
        self.regions = [
            (BAT_GUID, self.bat_offset, self.bat_length, 1),
            (METADATA_GUID, self.metadata_offset, MIB, 1),
        ]
        bits = self.parameter_bits | (2 if self.locator is not None else 0)
        self.items = [
            Item(FILE_PARAMETERS, struct.pack("<II", self.block_size, bits)),
            Item(VIRTUAL_DISK_SIZE, struct.pack("<Q", self.virtual_size), 6),
            Item(LOGICAL_SECTOR_SIZE, struct.pack("<I", self.sector_size), 6),
            Item(PHYSICAL_SECTOR_SIZE, struct.pack("<I", self.physical_sector_size), 6),
            Item(VIRTUAL_DISK_ID, bytes(range(16)), 6),
        ]
        if self.locator is not None:
            self.items.append(Item(PARENT_LOCATOR, self.locator))

    def item(self, guid: UUID) -> Item:
        """The metadata item that the disk has under `guid`."""
        return next(item for item in self.items if item.guid == guid)

    def payload_index(self, block: int) -> int:
        """Where the BAT has a payload block's entry."""
        return block + block // self.chunk_ratio

    def bitmap_index(self, chunk: int) -> int:
        """Where the BAT has a chunk's sector bitmap entry."""
        return chunk * (self.chunk_ratio + 1) + self.chunk_ratio

    def allocate(self, length: int) -> int:
        """Return the offset of fresh space at the end of the file."""
        offset = self.next_free
        self.next_free += -(-length // MIB) * MIB
        return offset

    def put(self, block: int, data: bytes, state: int = FULLY_PRESENT) -> int:
        """Store a payload block; return its file offset."""
        offset = self.allocate(self.block_size)
        self.pieces[offset] = data
        self.bat[self.payload_index(block)] = bat_entry(state, offset)
        return offset

    def put_bitmap(self, chunk: int, sectors: Iterable[int]) -> int:
        """Store a chunk's sector bitmap with the bits of `sectors` (counted within the chunk) set."""
        bits = bytearray(MIB)
        for sector in sectors:
            bits[sector >> 3] |= 1 << (sector & 7)
        offset = self.allocate(MIB)
        self.pieces[offset] = bytes(bits)
        self.bat[self.bitmap_index(chunk)] = bat_entry(6, offset)
        return offset

    def set_state(self, block: int, state: int, offset: int = 0) -> None:
        """Set a payload block's BAT entry."""
        self.bat[self.payload_index(block)] = bat_entry(state, offset)

    def bat_sector(self, entries: dict[int, int]) -> Sector:
        """A log update of the first 4 KiB of the BAT: as they are, with some entries replaced."""
        values = [{**self.bat, **entries}.get(index, 0) for index in range(512)]
        return Sector(self.bat_offset, struct.pack("<512Q", *values))

    def write_log(self, *entries: tuple[int, bytes]) -> None:
        """Put log entries at offsets in the ring, around its end where they do not fit."""
        ring = bytearray(self.log_length)
        for offset, data in entries:
            first = data[: self.log_length - offset]
            ring[offset : offset + len(first)] = first
            ring[: len(data) - len(first)] = data[len(first) :]
        self.pieces[MIB] = bytes(ring)

    def all_pieces(self) -> tuple[dict[int, bytes], int]:
        """Every piece of the file by its offset, and the file's size."""
        table = pack_region_table(self.regions)
        pieces = {
            0: b"vhdxfile" + "hand-packed".encode("utf-16-le").ljust(512, b"\0"),
            64 * KIB: self.headers[0],
            128 * KIB: self.headers[1],
            192 * KIB: table,
            256 * KIB: table,
            self.metadata_offset: pack_metadata(self.items),
        }
        for index, entry in self.bat.items():
            page, at = divmod(index, 512)
            offset = self.bat_offset + page * 4096
            values = bytearray(pieces.get(offset, bytes(4096)))
            struct.pack_into("<Q", values, at * 8, entry)
            pieces[offset] = bytes(values)
        return {**pieces, **self.pieces}, self.next_free if self.file_size is None else self.file_size

    def source(self, name: str = "sparse.vhdx") -> SparseSource:
        """The file as a source that is sparse in memory."""
        pieces, size = self.all_pieces()
        return SparseSource(pieces, size, name)

    def build(self) -> bytes:
        """The file as bytes."""
        pieces, size = self.all_pieces()
        data = bytearray(size)
        for offset, piece in pieces.items():
            data[offset : offset + len(piece)] = piece[: max(size - offset, 0)]
        return bytes(data)


def locator_for(parent: UUID, *names: str) -> bytes:
    """A parent locator as Windows writes it."""
    pairs = [("parent_linkage", f"{{{parent}}}")]
    pairs += list(zip(("relative_path", "volume_path", "absolute_win32_path"), names, strict=False))
    return pack_locator(pairs)


@functools.lru_cache(maxsize=64)
def pattern(seed: int, length: int = MIB) -> bytes:
    """Bytes that tell where they are from: no 512-byte sector equals another one of any seed below 2^16."""
    sectors = (struct.pack("<HI", seed, number) + bytes([seed & 0xFF | 1]) * 506 for number in range(length // 512))
    return b"".join(sectors)
