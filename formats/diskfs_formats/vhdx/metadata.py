"""The metadata region: what the disk is.

Specification: [MS-VHDX] 8.0, section 2.6. A table of items in any order, each of which is identified by a GUID.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

from diskfs_formats.binary import is_power_of_two, parse_bytes
from diskfs_formats.errors import CorruptImage, TruncatedImage, UnsupportedFeature
from diskfs_formats.source import ByteSource, MemorySource
from diskfs_formats.vhdx.parent import ParentLocator, read_parent_locator
from diskfs_formats.vhdx.regions import Region
from diskfs_formats.vhdx.structures import (
    FILE_PARAMETERS,
    FILE_PARAMETERS_ITEM,
    FLAG_HAS_PARENT,
    FLAG_IS_REQUIRED,
    FLAG_IS_USER,
    FLAG_LEAVE_BLOCK_ALLOCATED,
    LOGICAL_SECTOR_SIZE_ITEM,
    MAX_ENTRIES,
    METADATA_TABLE_ENTRY,
    METADATA_TABLE_HEADER,
    METADATA_TABLE_SIZE,
    MIB,
    PARENT_LOCATOR_ITEM,
    PHYSICAL_SECTOR_SIZE_ITEM,
    TIB,
    VIRTUAL_DISK_ID_ITEM,
    VIRTUAL_DISK_SIZE_ITEM,
    guid,
)

MAX_USER_ITEMS = 1024
MAX_ITEM_LENGTH = MIB
MAX_BLOCK_SIZE = 256 * MIB
MAX_VIRTUAL_DISK_SIZE = 64 * TIB
SECTOR_SIZES = (512, 4096)

_KNOWN = {
    FILE_PARAMETERS_ITEM: "file parameters",
    VIRTUAL_DISK_SIZE_ITEM: "virtual disk size",
    VIRTUAL_DISK_ID_ITEM: "virtual disk ID",
    LOGICAL_SECTOR_SIZE_ITEM: "logical sector size",
    PHYSICAL_SECTOR_SIZE_ITEM: "physical sector size",
    PARENT_LOCATOR_ITEM: "parent locator",
}


@dataclass(frozen=True, slots=True)
class Metadata:
    """The known items, checked. Sizes in bytes."""

    block_size: int
    leave_block_allocated: bool
    virtual_disk_size: int
    virtual_disk_id: UUID
    logical_sector_size: int
    physical_sector_size: int
    parent_locator: ParentLocator | None

    @property
    def has_parent(self) -> bool:
        """Whether the disk is differencing."""
        return self.parent_locator is not None

    @property
    def variant(self) -> str:
        """`fixed`, `dynamic` or `differencing`."""
        if self.has_parent:
            return "differencing"
        return "fixed" if self.leave_block_allocated else "dynamic"


@dataclass(frozen=True, slots=True)
class _Item:
    """An entry of the metadata table; `offset` counts from the beginning of the region."""

    identity: UUID
    offset: int
    length: int
    is_user: bool
    is_required: bool

    @property
    def title(self) -> str:
        if not self.is_user and self.identity in _KNOWN:
            return _KNOWN[self.identity]
        return f"{'user' if self.is_user else 'system'} item {self.identity}"


def read_metadata(file: ByteSource, region: Region) -> Metadata:
    """Read the metadata region; raises ImageError, UnsupportedFeature for a required item that is not known."""
    return _Items(file, region).metadata()


class _Items:
    """The items of a metadata region whose table is checked."""

    def __init__(self, file: ByteSource, region: Region) -> None:
        self._file = file
        self._region = region
        self._where = f"{file.name}: metadata region at offset {region.offset:#x}"
        self._items = {item.identity: item for item in self._checked_table() if not item.is_user}

    def metadata(self) -> Metadata:
        parameters = parse_bytes(
            FILE_PARAMETERS,
            self._read(FILE_PARAMETERS_ITEM, FILE_PARAMETERS.sizeof()),
            self._file,
            self._region.offset + self._items[FILE_PARAMETERS_ITEM].offset,
            "VHDX file parameters",
        )
        block_size = parameters.BlockSize
        if not (is_power_of_two(block_size) and MIB <= block_size <= MAX_BLOCK_SIZE):
            raise CorruptImage(
                f"{self._where}: the block size is {block_size}, expected a power of two from {MIB} to {MAX_BLOCK_SIZE}"
            )
        logical_sector_size = self._sector_size(LOGICAL_SECTOR_SIZE_ITEM)
        size = int.from_bytes(self._read(VIRTUAL_DISK_SIZE_ITEM, 8), "little")
        if size % logical_sector_size or not 0 < size <= MAX_VIRTUAL_DISK_SIZE:
            raise CorruptImage(
                f"{self._where}: the virtual disk size is {size}, expected a multiple of {logical_sector_size} up to "
                f"{MAX_VIRTUAL_DISK_SIZE}"
            )
        return Metadata(
            block_size=block_size,
            leave_block_allocated=bool(parameters.flags & FLAG_LEAVE_BLOCK_ALLOCATED),
            virtual_disk_size=size,
            virtual_disk_id=guid(self._read(VIRTUAL_DISK_ID_ITEM, 16)),
            logical_sector_size=logical_sector_size,
            physical_sector_size=self._sector_size(PHYSICAL_SECTOR_SIZE_ITEM),
            parent_locator=self._parent_locator(has_parent=bool(parameters.flags & FLAG_HAS_PARENT)),
        )

    def _sector_size(self, identity: UUID) -> int:
        value = int.from_bytes(self._read(identity, 4), "little")
        if value not in SECTOR_SIZES:
            raise CorruptImage(f"{self._where}: the {_KNOWN[identity]} is {value}, expected 512 or 4096")
        return value

    def _parent_locator(self, *, has_parent: bool) -> ParentLocator | None:
        item = self._items.get(PARENT_LOCATOR_ITEM)
        if (item is not None) != has_parent:
            raise CorruptImage(
                f"{self._where}: the file parameters say that the disk has {'a' if has_parent else 'no'} parent, but "
                f"there is {'no' if has_parent else 'a'} parent locator: its content cannot be known"
            )
        if item is None:
            return None
        name = f"{self._file.name}: parent locator at offset {self._place(item):#x}"
        return read_parent_locator(MemorySource(self._read(PARENT_LOCATOR_ITEM), name))

    def _place(self, item: _Item) -> int:
        return self._region.offset + item.offset

    def _read(self, identity: UUID, length: int | None = None) -> bytes:
        """Return the bytes of a known item; `length` is the specification's, None if that leaves it open."""
        item = self._items.get(identity)
        if item is None:
            raise CorruptImage(f"{self._where}: it has no {_KNOWN[identity]} ({identity}), which every disk has")
        if length is not None and item.length != length:
            raise CorruptImage(f"{self._where}: the {item.title} has {item.length} bytes, expected {length}")
        if self._place(item) + item.length > self._file.size:
            raise TruncatedImage(
                f"{self._where}: the {item.title} at offset {self._place(item):#x} needs {item.length} bytes, the file "
                f"ends at {self._file.size:#x}: the file is incomplete"
            )
        return self._file.read_at(self._place(item), item.length)

    def _checked_table(self) -> list[_Item]:
        items = list(self._table())
        seen: set[tuple[UUID, bool]] = set()
        for item in items:
            if (item.identity, item.is_user) in seen:
                raise CorruptImage(f"{self._where}: two entries for the {item.title}, expected one")
            seen.add((item.identity, item.is_user))
            if item.is_required and (item.is_user or item.identity not in _KNOWN):
                raise UnsupportedFeature(f"{self._where}: the {item.title} is marked as required, and is not known")
            self._require_place(item)
        if sum(item.is_user for item in items) > MAX_USER_ITEMS:
            raise CorruptImage(f"{self._where}: over {MAX_USER_ITEMS} user items, which is the most there can be")
        placed = sorted((item for item in items if item.length), key=lambda item: item.offset)
        for one, two in itertools.pairwise(placed):
            if one.offset + one.length > two.offset:
                raise CorruptImage(
                    f"{self._where}: the {one.title} ({one.length} bytes at {one.offset:#x}) and the {two.title} "
                    f"({two.length} bytes at {two.offset:#x}) overlap"
                )
        return items

    def _table(self) -> Iterator[_Item]:
        if self._region.length < METADATA_TABLE_SIZE:
            raise CorruptImage(f"{self._where}: its length is 0, at least {MIB} bytes are expected")
        if self._region.offset + METADATA_TABLE_SIZE > self._file.size:
            raise TruncatedImage(
                f"{self._where}: its table needs {METADATA_TABLE_SIZE} bytes, the file ends at {self._file.size:#x}: "
                "the file is incomplete"
            )
        data = self._file.read_at(self._region.offset, METADATA_TABLE_SIZE)
        raw = parse_bytes(METADATA_TABLE_HEADER, data, self._file, self._region.offset, "VHDX metadata table")
        if raw.EntryCount > MAX_ENTRIES:
            raise CorruptImage(f"{self._where}: {raw.EntryCount} entries, at most {MAX_ENTRIES} are possible")
        start = METADATA_TABLE_HEADER.sizeof()
        entries = memoryview(data)[start : start + raw.EntryCount * METADATA_TABLE_ENTRY.size]
        for identity, offset, length, flags, _ in METADATA_TABLE_ENTRY.iter_unpack(entries):
            yield _Item(guid(identity), offset, length, bool(flags & FLAG_IS_USER), bool(flags & FLAG_IS_REQUIRED))

    def _require_place(self, item: _Item) -> None:
        if not item.length and not item.offset:
            return
        inside = item.offset >= METADATA_TABLE_SIZE and item.offset + item.length <= self._region.length
        if not 0 < item.length <= MAX_ITEM_LENGTH or not inside:
            raise CorruptImage(
                f"{self._where}: the {item.title} has {item.length} bytes at {item.offset:#x}, expected 1 to "
                f"{MAX_ITEM_LENGTH} between {METADATA_TABLE_SIZE:#x} and {self._region.length:#x}"
            )
