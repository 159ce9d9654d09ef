"""A hive, its keys and their values.

Only what is asked for is read: the way from the root to a key, and the names of the keys beside it where the list that
leads to them has no hashes. The parent links and last cell of a key play no part, so a circle among keys is harmless.
"""

import enum
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from construct import Bytes, Int32ul, Int64ul, Padding, Struct

from diskfs.guest.errors import GuestError
from diskfs.guest.registry.cells import BASE_BLOCK_SIZE, NO_CELL, Cells
from diskfs.guest.registry.log import replay
from diskfs_formats.source import ByteSource

MAX_HIVE = 512 << 20
"""Bytes of a hive; a real SOFTWARE has 60 to 150 MiB."""
MAX_NAME = 1024
MAX_VALUES = 16384
MAX_DATA = 1 << 20
"""Bytes of one value that are read."""
SEGMENT_SIZE = 16344
"""Bytes of data in one cell; what is longer is cut into segments that a `db` record lists."""

FIRST_BIG_DATA = 4
"""The minor version from which values are cut into segments."""

BASE_BLOCK = Struct(
    "signature" / Bytes(4),
    "primary_sequence" / Int32ul,
    "secondary_sequence" / Int32ul,
    "timestamp" / Int64ul,
    "major" / Int32ul,
    "minor" / Int32ul,
    "type" / Int32ul,
    "format" / Int32ul,
    "root_cell" / Int32ul,
    "hive_bins_size" / Int32ul,
    Padding(464),
    "checksum" / Int32ul,
)
assert BASE_BLOCK.sizeof() == 512

# signature, flags, last written, access bits, parent, subkeys, volatile ones, their lists, values, list of values, ...,
# length of the name, length of the class name
_KEY = struct.Struct("<2sHQIIIIIIII28xHH")
assert _KEY.size == 76
_VALUE = struct.Struct("<2sHIIIHH")
_ELEMENT = struct.Struct("<II")
_COMPRESSED_NAME = 0x0020
_VALUE_COMPRESSED_NAME = 0x0001
_INLINE = 0x80000000


class ValueType(enum.IntEnum):
    """The types of data that have a meaning here; others keep their number."""

    NONE = 0
    SZ = 1
    EXPAND_SZ = 2
    BINARY = 3
    DWORD = 4
    DWORD_BIG_ENDIAN = 5
    LINK = 6
    MULTI_SZ = 7
    QWORD = 11


@dataclass(frozen=True, slots=True)
class Value:
    """One value of a key: its name (empty for the default value), its type and its bytes."""

    name: str
    type: int
    data: bytes

    @property
    def integer(self) -> int | None:
        """The number, if it is one."""
        if self.type in {ValueType.DWORD, ValueType.QWORD} and len(self.data) in {4, 8}:
            return int.from_bytes(self.data, "little")
        if self.type == ValueType.DWORD_BIG_ENDIAN and len(self.data) == 4:
            return int.from_bytes(self.data, "big")
        return None

    @property
    def text(self) -> str | None:
        """The text up to its end mark, if it is one."""
        if self.type not in {ValueType.SZ, ValueType.EXPAND_SZ}:
            return None
        return _utf16(self.data).split("\0", 1)[0]

    @property
    def texts(self) -> tuple[str, ...] | None:
        """The lines of a REG_MULTI_SZ; a text counts as one line, since Windows takes one in most places."""
        if self.type == ValueType.MULTI_SZ:
            return tuple(line for line in _utf16(self.data).split("\0") if line)
        return None if self.text is None else tuple(line for line in [self.text] if line)


class Key:
    """One key. Every method raises GuestError for a damaged cell, and what the source raises."""

    def __init__(self, cells: Cells, offset: int, what: str) -> None:
        cell = cells.read(offset, what, limit=_KEY.size + MAX_NAME)
        if len(cell) < _KEY.size or cell[:2] != b"nk":
            raise cells.damaged(offset, f"{what}: signature {cell[:2]!r}, expected b'nk'")
        fields = _KEY.unpack_from(cell)
        self.last_written: int = fields[2]
        """Intervals of 100 ns since 1601, UTC."""
        self._cells = cells
        self._offset = offset
        self._subkeys: tuple[int, int] = (fields[5], fields[7])
        self._values: tuple[int, int] = (fields[9], fields[10])
        self.name = _name(cell[_KEY.size : _KEY.size + fields[11]], compressed=bool(fields[1] & _COMPRESSED_NAME))

    @property
    def subkey_count(self) -> int:
        """The number of subkeys by the key's own word."""
        return self._subkeys[0]

    def subkeys(self) -> Iterator["Key"]:
        """Yield the subkeys in the hive's order, which is by name."""
        count, offset = self._subkeys
        if not count:
            return
        for found, _ in self._elements(offset):
            yield Key(self._cells, found, f"a subkey of {self.name!r}")

    def subkey(self, name: str) -> "Key | None":
        """Return the subkey of that name, whatever its case; None if there is none."""
        count, offset = self._subkeys
        if not count:
            return None
        wanted, hashed = name.upper(), _hash(name)
        for found, hash_ in self._elements(offset):
            if hash_ is not None and hash_ != hashed:
                continue
            key = Key(self._cells, found, f"a subkey of {self.name!r}")
            if key.name.upper() == wanted:
                return key
        return None

    def values(self) -> Iterator[Value]:
        """Yield the values in the hive's order."""
        for offset in self._value_offsets():
            yield self._value(offset)

    def value(self, name: str) -> Value | None:
        """Return the value of that name, whatever its case; None if there is none."""
        wanted = name.upper()
        for offset in self._value_offsets():
            if self._value_name(offset)[0].upper() == wanted:
                return self._value(offset)
        return None

    def _elements(self, offset: int, *, index: bool = True) -> Iterator[tuple[int, int | None]]:
        """Yield (offset, hash or None) of a list of subkeys: li, lf, lh, or ri, a list of such lists."""
        cell = self._cells.read(offset, f"the subkeys of {self.name!r}")
        if len(cell) < 4:
            raise self._cells.damaged(offset, f"the list of subkeys of {self.name!r} has {len(cell)} bytes")
        kind, count = cell[:2], int.from_bytes(cell[2:4], "little")
        width = 8 if kind in {b"lf", b"lh"} else 4
        if count * width > len(cell) - 4:
            raise self._cells.damaged(
                offset, f"the list of subkeys of {self.name!r} counts {count}; its cell has {len(cell)} bytes"
            )
        self._cells.spend(count // 8)
        if kind == b"ri" and index:
            for (found,) in struct.iter_unpack("<I", cell[4 : 4 + 4 * count]):
                yield from self._elements(found, index=False)
        elif kind == b"li":
            for (found,) in struct.iter_unpack("<I", cell[4 : 4 + 4 * count]):
                yield found, None
        elif kind in {b"lf", b"lh"}:
            for found, hash_ in _ELEMENT.iter_unpack(cell[4 : 4 + 8 * count]):
                yield found, hash_ if kind == b"lh" else None
        else:
            raise self._cells.damaged(
                offset, f"the list of subkeys of {self.name!r}: signature {kind!r}, expected li, lf, lh or one ri"
            )

    def _value_offsets(self) -> Iterator[int]:
        count, offset = self._values
        if not count or offset == NO_CELL:
            return
        if count > MAX_VALUES:
            raise self._cells.damaged(self._offset, f"the key {self.name!r} counts {count} values, over {MAX_VALUES}")
        cell = self._cells.read(offset, f"the list of values of {self.name!r}")
        if 4 * count > len(cell):
            raise self._cells.damaged(
                offset, f"the key {self.name!r} counts {count} values; the cell of their list has {len(cell)} bytes"
            )
        for (found,) in struct.iter_unpack("<I", cell[: 4 * count]):
            yield found

    def _value_name(self, offset: int) -> tuple[str, int, int, int]:
        what = f"a value of {self.name!r}"
        cell = self._cells.read(offset, what, limit=_VALUE.size + MAX_NAME)
        if len(cell) < _VALUE.size or cell[:2] != b"vk":
            raise self._cells.damaged(offset, f"{what}: signature {cell[:2]!r}, expected b'vk'")
        _, name_length, size, data, type_, flags, _ = _VALUE.unpack_from(cell)
        raw = cell[_VALUE.size : _VALUE.size + name_length]
        return _name(raw, compressed=bool(flags & _VALUE_COMPRESSED_NAME)), type_, size, data

    def _value(self, offset: int) -> Value:
        name, type_, size, data = self._value_name(offset)
        if size & _INLINE:
            length = size & ~_INLINE
            if length > 4:
                raise self._cells.damaged(offset, f"the value {name!r} keeps {length} bytes in its 4-byte offset")
            return Value(name, type_, data.to_bytes(4, "little")[:length])
        if size == 0:
            return Value(name, type_, b"")
        if size > MAX_DATA:
            raise self._cells.damaged(offset, f"the value {name!r} has {size} bytes, over the limit of {MAX_DATA}")
        return Value(name, type_, self._data(data, size, name))

    def _data(self, offset: int, size: int, name: str) -> bytes:
        what = f"the data of {name!r} of {self.name!r}"
        cell = self._cells.read(offset, what)
        if self._cells.big_data and size > SEGMENT_SIZE and cell[:2] == b"db" and len(cell) >= 8:
            count, segments = struct.unpack_from("<HI", cell, 2)
            table = self._cells.read(segments, what)
            if count * 4 > len(table) or count * SEGMENT_SIZE < size:
                raise self._cells.damaged(offset, f"{what} has {size} bytes; its {count} segments do not hold them")
            self._cells.spend(count)
            content = bytearray()
            for (found,) in struct.iter_unpack("<I", table[: 4 * count]):
                content += self._cells.read(found, what, limit=SEGMENT_SIZE)
                if len(content) >= size:
                    break
            cell = bytes(content)
        if len(cell) < size:
            raise self._cells.damaged(offset, f"{what} has {size} bytes; its cell has {len(cell)}")
        return cell[:size]


@dataclass(frozen=True, slots=True)
class Hive:
    """An open hive. `unclean` tells why it may not be what Windows last saw; empty if it was written whole."""

    name: str
    root: Key
    unclean: str
    replayed: bool
    """Changes were taken from its transaction logs."""

    def key(self, path: str) -> Key | None:
        """Return the key at `path` below the root, `\\`-separated; None if there is none."""
        key: Key | None = self.root
        for name in path.split("\\"):
            if name and key is not None:
                key = key.subkey(name)
        return key


def open_hive(source: ByteSource, logs: Sequence[ByteSource] = ()) -> Hive:
    """Open a hive; `logs` are its transaction logs, whose changes are seen where the hive lacks them.

    Raises GuestError for what is no hive, and what the source raises. Not for several threads.
    """
    name = source.name
    if source.size < BASE_BLOCK_SIZE + 32:
        raise GuestError(f"{name}: {source.size} bytes are too few for a registry hive")
    if source.size > MAX_HIVE:
        raise GuestError(f"{name}: {source.size} bytes are over the limit of {MAX_HIVE} for a registry hive")
    block = source.read_at(0, 512)
    base = BASE_BLOCK.parse(block)
    if base.signature != b"regf":
        raise GuestError(f"{name}: offset 0: signature {base.signature!r}, expected b'regf': it is no registry hive")
    if (base.major, base.type, base.format) != (1, 0, 1):
        raise GuestError(
            f"{name}: offset 0x14: version {base.major}.{base.minor}, type {base.type}, format {base.format}; read are "
            "hives of version 1, type 0, format 1"
        )
    length, unclean = base.hive_bins_size, ""
    pages: Mapping[int, bytes] = {}
    damaged = checksum(block) != base.checksum
    if damaged or base.primary_sequence != base.secondary_sequence:
        unclean = (
            f"{name}: offset 0x1fc: the checksum is {base.checksum:#010x}, computed {checksum(block):#010x}"
            if damaged
            else f"{name}: offset 4: sequence numbers {base.primary_sequence} and {base.secondary_sequence} differ: "
            "the hive was not written to its end"
        )
        done = None if damaged else replay(logs, base.secondary_sequence, MAX_HIVE)
        if done is not None:
            length, pages = done.hive_bins_size, done.pages
    if not 32 <= length <= MAX_HIVE:
        raise GuestError(f"{name}: offset 0x28: the hive bins have {length} bytes; expected 32 to {MAX_HIVE}")
    if not pages and length > source.size - BASE_BLOCK_SIZE:
        raise GuestError(f"{name}: offset 0x28: the hive bins have {length} bytes; the file has {source.size}")
    cells = Cells(source, length, pages, big_data=base.minor >= FIRST_BIG_DATA)
    return Hive(name, Key(cells, base.root_cell, "the root key"), unclean, bool(pages))


def checksum(block: bytes) -> int:
    """Return the checksum of a base block: its first 127 numbers, each of 32 bits, by exclusive or."""
    result = 0
    for (number,) in struct.iter_unpack("<I", block[:508]):
        result ^= number
    # 0 and -1 are never written: 1 and -2 stand for them.
    return {0: 1, 0xFFFFFFFF: 0xFFFFFFFE}.get(result, result)


def _name(raw: bytes, *, compressed: bool) -> str:
    return raw.decode("latin-1") if compressed else _utf16(raw)


def _utf16(raw: bytes) -> str:
    return raw.decode("utf-16-le", "replace")


def _hash(name: str) -> int:
    result = 0
    for character in name.upper():
        result = (result * 37 + ord(character)) & 0xFFFFFFFF
    return result
