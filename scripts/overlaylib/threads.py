"""Many threads on one disk of an overlay: each has bytes of its own in every block, and must find them as it left them.

The blocks are shared, so that each thread completes, overwrites and discards around the others. The interpreter changes
threads as often as it can, and pages of the index leave memory all the time.
"""

import random
import sys
import threading
import uuid

from diskfs.disks.overlay.disk import OverlayDisk
from diskfs.disks.overlay.folder import create_files, open_disk
from diskfs.disks.overlay.layout import BLOCKS_PER_PAGE, IndexHeader
from scripts.overlaylib.model import Difference, memory_disk
from scripts.overlaylib.simulated import SimulatedStorage

THREADS = 6
BLOCK = 1024
BLOCKS = 12
LANE = 170
"""Bytes of each block that belong to one thread: borders lie inside sectors."""


def run(rounds: int, operations: int, seed: str) -> int:
    """Let threads do `operations` each, `rounds` times; returns how many were done. Raises Difference."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for number in range(rounds):
            _round(f"{seed}/{number}", operations)
    finally:
        sys.setswitchinterval(interval)
    return rounds * operations * THREADS


def _round(seed: str, operations: int) -> None:
    rng = random.Random(seed)
    size = BLOCK * (2 * BLOCKS_PER_PAGE + 20)
    base = rng.randbytes(BLOCK) * (size // BLOCK)
    header = IndexHeader(uuid.UUID(int=rng.getrandbits(128)), 0, BLOCK, size)
    storage = SimulatedStorage(recorded=False)
    storage.make_folder()
    create_files(storage, header)
    disk = open_disk(storage, header, "overlay", memory_disk(base), pages_kept=rng.choice((1, 2, 8192)))
    # Blocks on both sides of a border between pages, and some at the end.
    blocks = [*range(BLOCKS_PER_PAGE - BLOCKS // 2, BLOCKS_PER_PAGE + BLOCKS // 2), size // BLOCK - 1]
    lanes = []
    for number in range(THREADS):
        starts = [block * BLOCK + number * LANE for block in blocks]
        lanes.append(_Lane(disk, number, seed, {start: base[start : start + LANE] for start in starts}))
        lanes[-1].operations = operations
    for lane in lanes:
        lane.start()
    for lane in lanes:
        lane.join()
    for lane in lanes:
        if lane.failure is not None:
            raise lane.failure
    disk.close()
    again = open_disk(storage, header, "overlay", memory_disk(base))
    for lane in lanes:
        lane.require_all(again)


class _Lane(threading.Thread):
    """One thread, and what its bytes are."""

    def __init__(self, disk: OverlayDisk, number: int, seed: str, expected: dict[int, bytes]) -> None:
        """Work on the bytes at `expected`, which says what they are."""
        super().__init__()
        self._disk = disk
        self._seed = f"{seed}/{number}"
        self._rng = random.Random(self._seed)
        self._expected = expected
        self._starts = list(expected)
        self.operations = 0
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            for _ in range(self.operations):
                self._step()
        except BaseException as error:  # noqa: BLE001 - the thread that waits raises it
            self.failure = error

    def _step(self) -> None:
        rng = self._rng
        start = rng.choice(self._starts)
        kind = rng.random()
        if kind < 0.45:
            one, two = sorted(rng.sample(range(LANE + 1), 2))
            data = rng.randbytes(two - one) if kind < 0.4 else bytes(two - one)
            self._disk.write_at(start + one, data)
            self._expected[start] = self._expected[start][:one] + data + self._expected[start][two:]
        elif kind < 0.55:
            self._disk.discard(start, LANE)
            self._expected[start] = bytes(LANE)
        elif kind < 0.97:
            self._require(self._disk, start)
        else:
            self._disk.flush()

    def _require(self, disk: OverlayDisk, start: int) -> None:
        if disk.read_at(start, LANE) != self._expected[start]:
            raise Difference(f"seed {self._seed}: {LANE} bytes at {start:#x} are not what their thread wrote last")

    def require_all(self, disk: OverlayDisk) -> None:
        """Raise Difference unless all bytes of the thread are there."""
        for start in self._starts:
            self._require(disk, start)
