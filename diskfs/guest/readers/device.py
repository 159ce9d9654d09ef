"""The bytes of a volume as a reader sees them: pieces of disks, fetched in blocks and kept for a while."""

import bisect
import collections
from collections.abc import Callable, Sequence
from typing import TypeAlias

BLOCK_SIZE = 64 << 10
"""Bytes fetched at a time: file systems read their metadata in pieces of 512 bytes to 16 KiB that lie together."""

MAX_BLOCKS = 512
"""Blocks kept over all volumes: 32 MiB."""

MAX_FETCH = 1 << 20
"""Bytes asked for in one request."""

Fetch: TypeAlias = Callable[[int, int, int], bytes]
"""Disk index, offset, length: those bytes of that disk; raises OSError where they cannot be had."""

Segment: TypeAlias = tuple[int, int, int]
"""Disk index, offset on that disk, length; bytes. A disk index below 0 stands for zeroes."""


class BlockCache:
    """The blocks of all disks that were used last."""

    def __init__(self, fetch: Fetch, sizes: Sequence[int]) -> None:
        self._fetch = fetch
        self._sizes = sizes
        self._blocks: collections.OrderedDict[tuple[int, int], bytes] = collections.OrderedDict()

    def read(self, disk: int, offset: int, length: int) -> bytes:
        """Return bytes of a disk that lie inside it."""
        parts = []
        end = offset + length
        while offset < end:
            block, inside = divmod(offset, BLOCK_SIZE)
            data = self._blocks.get((disk, block))
            if data is None:
                self._load(disk, block, (end - 1) // BLOCK_SIZE)
                data = self._blocks[disk, block]
            else:
                self._blocks.move_to_end((disk, block))
            part = data[inside : inside + end - offset]
            if not part:
                raise OSError(f"disk{disk}: bytes past its end at {offset:#x} were asked for")
            parts.append(part)
            offset += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _load(self, disk: int, block: int, last: int) -> None:
        """Fetch a block, and with it those up to `last` that are missing as well."""
        count = 1
        while count * BLOCK_SIZE < MAX_FETCH and block + count <= last and (disk, block + count) not in self._blocks:
            count += 1
        start = block * BLOCK_SIZE
        data = self._fetch(disk, start, min(count * BLOCK_SIZE, self._sizes[disk] - start))
        for index in range(count):
            self._blocks[disk, block + index] = data[index * BLOCK_SIZE : (index + 1) * BLOCK_SIZE]
        while len(self._blocks) > MAX_BLOCKS:
            self._blocks.popitem(last=False)


class Device:
    """One volume. Not for several threads at once."""

    def __init__(self, cache: BlockCache, segments: Sequence[Segment]) -> None:
        self._cache = cache
        self._segments = list(segments)
        self._starts: list[int] = []
        self.size = 0
        for _, _, length in self._segments:
            self._starts.append(self.size)
            self.size += length

    def read_at(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes; raises OSError past the end or where they cannot be had."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise OSError(f"{length} bytes at {offset:#x} are outside the volume of {self.size} bytes")
        parts = []
        while length:
            index = bisect.bisect_right(self._starts, offset) - 1
            disk, start, size = self._segments[index]
            inside = offset - self._starts[index]
            count = min(length, size - inside)
            parts.append(self._cache.read(disk, start + inside, count) if disk >= 0 else bytes(count))
            offset += count
            length -= count
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_up_to(self, offset: int, length: int) -> bytes:
        """Return what there is of a range, as reading a file does."""
        if offset < 0:
            raise OSError(f"offset {offset} is negative")
        return self.read_at(offset, max(0, min(length, self.size - offset)))


class DeviceFile:
    """A device with a position, as the libraries of libyal want it."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._offset = 0

    def read(self, size: int | None = None) -> bytes:
        data = self._device.read_up_to(self._offset, self._device.size if size is None else size)
        self._offset += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> None:
        self._offset = offset + (0, self._offset, self._device.size)[whence]

    def tell(self) -> int:
        return self._offset

    def get_offset(self) -> int:
        return self._offset

    def get_size(self) -> int:
        return self._device.size
