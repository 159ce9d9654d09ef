"""Small pieces that lie apart: what a thread takes at once is asked for at once, and lands in its place."""

import random
from collections.abc import Sequence
from pathlib import Path

from diskfs.convert.copy import copy_disk
from diskfs.sinks.file import FileSink
from diskfs_formats.driver import ImageInfo
from diskfs_formats.extents import Extent, ExtentKind, Stored
from diskfs_formats.mapped import MappedImage
from diskfs_formats.source import MemorySource

BLOCK = 4096
COUNT = 1000


class Remote(MemorySource):
    """A source that takes several ranges at once."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data, "remote")
        self.requests = 0

    def read_ranges(self, ranges: Sequence[tuple[int, int]], /) -> list[bytes]:
        self.requests += 1
        return [MemorySource.read_at(self, offset, length) for offset, length in ranges]

    def read_at(self, offset: int, length: int, /) -> bytes:
        self.requests += 1
        return super().read_at(offset, length)


class EveryOther(MappedImage):
    """Every other block is stored, far from its neighbours and in no order; the others are zero."""

    def __init__(self) -> None:
        chance = random.Random(7)
        self.places = list(range(COUNT))
        chance.shuffle(self.places)
        self.content = chance.randbytes(COUNT * BLOCK)
        stored = bytearray(4 * COUNT * BLOCK)
        for block, place in enumerate(self.places):
            stored[4 * place * BLOCK : (4 * place + 1) * BLOCK] = self.content[block * BLOCK : (block + 1) * BLOCK]
        self.source = Remote(bytes(stored))
        super().__init__("blocks", ImageInfo("test", "test", 2 * COUNT * BLOCK), (self.source,))

    def lookup(self, offset: int, /) -> Extent:
        block = offset // BLOCK
        if block % 2:
            return Extent(block * BLOCK, BLOCK, ExtentKind.ZERO)
        place = 4 * self.places[block // 2] * BLOCK
        return Extent(block * BLOCK, BLOCK, ExtentKind.DATA, Stored(self.source, place, BLOCK))


def test_scattered_pieces_are_asked_for_together_and_land_in_their_places(tmp_path: Path) -> None:
    for threads in (1, 2, 8):
        disk = EveryOther()
        target = tmp_path / f"{threads}.raw"
        sink = FileSink(target)
        copied = copy_disk(disk, sink, lambda _length: None, threads=threads)
        sink.commit()
        found = target.read_bytes()
        assert len(found) == 2 * COUNT * BLOCK
        for block in range(COUNT):
            start = 2 * block * BLOCK
            assert found[start : start + BLOCK] == disk.content[block * BLOCK : (block + 1) * BLOCK]
            assert not any(found[start + BLOCK : start + 2 * BLOCK])
        assert copied.read == copied.written == COUNT * BLOCK
        # 32 pieces, and the gaps between them, are taken at once.
        assert disk.source.requests <= COUNT / 32 + 1
