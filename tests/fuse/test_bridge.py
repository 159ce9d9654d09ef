"""Reads that wait keep no others from being answered."""

import threading
import time

import pytest
import trio

from diskfs.fuse.bridge import Reader
from diskfs_formats.driver import ImageInfo
from diskfs_formats.source import MemorySource

STEP = 128 << 10
STREAMS = 8
"""More than there are decoders on any machine that runs the tests."""


class Compressed(MemorySource):
    """A disk that reads as an encoded one does; with a gate, all but the first two reads of a stream wait until it
    opens, as fetches that hang do.
    """

    def __init__(self, gate: threading.Event | None = None) -> None:
        super().__init__(bytes(range(256)) * (64 * STEP // 256), "disk")
        self.info = ImageInfo("vmdk", "streamOptimized", self.size, compressed=True)
        self._gate = gate

    def read_at(self, offset: int, length: int, /) -> bytes:
        if self._gate is not None and offset >= 2 * STEP:
            assert self._gate.wait(30)
        return super().read_at(offset, length)

    def read_if_ready(self, offset: int, length: int, /) -> None:
        return None


@pytest.mark.parametrize("decoders", [1, 2])
def test_streams_that_hang_do_not_stop_another(decoders: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diskfs_formats.reading.ENGINE._workers", decoders)
    monkeypatch.setattr("diskfs_formats.reading.ENGINE._pool", None)
    gate = threading.Event()
    reader = Reader(limit=4 * STREAMS, decode_ahead=False)
    took = []

    async def hang(disk: Compressed) -> None:
        for number in range(4):
            await reader.read_at(disk, number * STEP, STEP)

    async def go_on() -> None:
        disk = Compressed()
        begun = time.monotonic()
        for number in range(8):
            assert await reader.read_at(disk, number * STEP, STEP) == disk.read_at(number * STEP, STEP)
        took.append(time.monotonic() - begun)
        gate.set()

    async def check() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(STREAMS):
                nursery.start_soon(hang, Compressed(gate))
            await trio.sleep(0.1)
            nursery.start_soon(go_on)

    trio.run(check)
    reader.close()
    assert took[0] < 5
