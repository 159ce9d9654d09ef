"""Every power loss that could befall a disk of an overlay, one by one.

A workload runs on a simulated storage, which writes down every operation and every sync. Then, after each of these, the
power fails: what was synced is there, and of the rest all, nothing, all but one, one alone, all but two, a part of the
sectors of one, or a random half. Each of these disks is opened, and each of its sectors must be what it was at the last
flush that had returned, or what was written to it since.
"""

import random
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from diskfs.disks.overlay.disk import OverlayDisk
from diskfs.disks.overlay.folder import create_files, open_disk
from diskfs.disks.overlay.layout import BLOCKS_PER_PAGE, IndexHeader
from diskfs_formats.driver import DiskImage
from diskfs_formats.errors import DiskfsError
from scripts.overlaylib.model import memory_disk
from scripts.overlaylib.simulated import SECTOR, Node, Operation, SimulatedStorage

PAIRS_UP_TO = 6
"""Pending operations of which all pairs are tried."""
HALVES = 3
"""Random halves of the pending operations that are tried at each point."""
TORN = 6
"""Ways in which one operation is torn, at each point, where it has more sectors than can all be tried."""

Parts = Sequence[tuple[int, int]] | None


class Lost(Exception):
    """A disk does not have what it has to have."""


@dataclass(slots=True)
class Write:
    """New content of a sector: which change it was, when the log had how many entries, and the content."""

    change: int
    position: int
    content: bytes


@dataclass
class Recorded:
    """A workload that has run: the log of its storage, and what each sector was and when."""

    header: IndexHeader
    base: bytes
    files: dict[str, Node]
    before: dict[int, bytes]
    """What the files had when the log began, by the number of their node."""
    log: list[tuple[Node, Operation | None]] = field(default_factory=list)
    """An operation, or None for a sync that has returned."""
    history: dict[int, list[Write]] = field(default_factory=dict)
    flushes: list[tuple[int, int]] = field(default_factory=list)
    """(entries of the log when it returned, changes that had been made when it was called)."""


@dataclass
class Tally:
    """What was tried."""

    workloads: int = 0
    states: int = 0
    points: int = 0


class Workload:
    """Changes of a disk, with a record of what each sector may be."""

    def __init__(self, seed: str, block_size: int, size: int) -> None:
        self.rng = random.Random(seed)
        self.size = size
        self.base = self.rng.randbytes(size)
        self.expected = bytearray(self.base)
        self.header = IndexHeader(uuid.UUID(int=self.rng.getrandbits(128)), 0, block_size, size)
        self.storage = SimulatedStorage()
        self.storage.make_folder()
        create_files(self.storage, self.header)
        self.storage.sync()
        files = dict(self.storage.synced)
        self.record = Recorded(
            self.header, self.base, files, {file.number: bytes(file.synced) for file in files.values()}
        )
        self.below: DiskImage = memory_disk(self.base)
        # With few pages in memory, writing flushes unasked, for which it would wait for the flush that it happens in.
        self.flushes_unasked = self.rng.random() < 0.5
        kept = 2 if self.flushes_unasked else 8192
        self.disk: OverlayDisk = open_disk(self.storage, self.header, "overlay", self.below, pages_kept=kept)
        self.changes = 0
        self.unfinished: int | None = None
        self.during: Callable[[str], None] | None = None
        """What another thread does in the middle of an operation, at the call to the storage after `wait` others."""
        self.wait = 0
        self.storage.watcher = self._watch

    def _watch(self, kind: str, node: Node | None, operation: Operation | None) -> None:
        # Guards are written under the lock of the index, for which the other thread would have to wait.
        guard = operation is not None and operation.length == SECTOR and operation.offset >= self.header.guards_offset
        if self.during is not None and kind in ("sync", "synced", "write", "hole") and not guard:
            self.wait -= 1
            if self.wait < 0:
                during, self.during = self.during, None
                during(kind)
        if node is not None and (operation is not None or kind == "sync"):
            self.record.log.append((node, operation))

    def write(self, offset: int, data: bytes) -> None:
        """Write, and note the content of each sector."""
        self.unfinished = self._change(offset, data)
        self.disk.write_at(offset, data)
        self.unfinished = None

    def discard(self, offset: int, length: int) -> None:
        """Discard, and note that each sector is zero."""
        self.unfinished = self._change(offset, bytes(length))
        self.disk.discard(offset, length)
        self.unfinished = None

    def _change(self, offset: int, data: bytes) -> int:
        self.expected[offset : offset + len(data)] = data
        position = len(self.record.log)
        for sector in range(offset // SECTOR, -(-(offset + len(data)) // SECTOR)):
            content = bytes(self.expected[sector * SECTOR : (sector + 1) * SECTOR])
            self.record.history.setdefault(sector, []).append(Write(self.changes, position, content))
        self.changes += 1
        return self.changes - 1

    def flush(self) -> None:
        """Flush, and note what has to be there from now on."""
        made = self.changes if self.unfinished is None else self.unfinished
        self.disk.flush()
        self.record.flushes.append((len(self.record.log), made))

    def random_step(self) -> None:
        """Do something."""
        rng = self.rng
        choice = rng.random()
        if choice < 0.25:
            if rng.random() < 0.4 and not self.flushes_unasked:
                self.during, self.wait = lambda _kind: self.change(), rng.randrange(4)
            self.flush()
            self.during = None
        else:
            if rng.random() < 0.15 and not self.flushes_unasked:
                self.during, self.wait = lambda kind: self.flush() if kind in ("write", "hole") else None, 0
            self.change()
            self.during = None

    def change(self) -> None:
        """Write or discard somewhere, often near a border or where something was before."""
        rng = self.rng
        block = self.header.block_size
        borders = (0, self.size, block, 2 * block, min(block * BLOCKS_PER_PAGE, self.size))
        offset = rng.choice(borders) + rng.choice((-block, -SECTOR, -7, 0, 9, SECTOR, block))
        if rng.random() < 0.3:
            offset = rng.randrange(0, min(6 * block, self.size))
        offset = min(max(offset, 0), self.size - 1)
        length = rng.choice((1, 100, SECTOR, block - 1, block, block + SECTOR, 2 * block, 3 * block))
        length = min(length, self.size - offset)
        kind = rng.random()
        if kind < 0.6:
            self.write(offset, rng.randbytes(length))
        elif kind < 0.7:
            self.write(offset, bytes(length))
        else:
            self.discard(offset, length)


GEOMETRIES = ((2048, 6 * 2048 + 700), (512, 4 * 512 + 10), (4096, 3 * 4096), (512, 512 * BLOCKS_PER_PAGE + 3 * 512))


def run(states: int, seed: str, tally: Tally) -> Iterator[Tally]:
    """Try at least `states` states; yields after each workload. Raises Lost with what leads there again."""
    while tally.states < states:
        number = tally.workloads
        name = f"{seed}/{number}"
        block_size, size = GEOMETRIES[number % len(GEOMETRIES)]
        workload = Workload(name, block_size, size)
        for _ in range(workload.rng.choice((3, 6, 14))):
            workload.random_step()
        workload.flush()
        try:
            examine(workload.record, workload.rng, tally)
        except Lost as lost:
            raise Lost(f"seed {seed}, workload {number}, blocks of {block_size}: {lost}") from lost
        tally.workloads += 1
        yield tally


def examine(record: Recorded, rng: random.Random, tally: Tally) -> None:
    """Let the power fail at every point of a workload, in every way; raises Lost."""
    synced = {number: bytearray(content) for number, content in record.before.items()}
    pending: list[tuple[Node, Operation]] = []
    judge = _Judge(record)
    for position in range(len(record.log) + 1):
        if position:
            node, operation = record.log[position - 1]
            if operation is not None:
                pending.append((node, operation))
            else:
                for owner, item in pending:
                    if owner is node:
                        item.apply(synced[node.number])
                pending = [(owner, item) for owner, item in pending if owner is not node]
        judge.move_to(position)
        tally.points += 1
        for kept in ways(pending, rng):
            contents = {number: bytearray(content) for number, content in synced.items()}
            for (node, operation), parts in zip(pending, kept, strict=True):
                if parts is None or parts:
                    operation.apply(contents[node.number], parts)
            tally.states += 1
            try:
                judge.require_sound(contents)
            except (Lost, DiskfsError) as error:
                raise Lost(f"after {position} of {len(record.log)} operations, kept {kept}: {error}") from error


def ways(pending: Sequence[tuple[Node, Operation]], rng: random.Random) -> Iterator[list[Parts]]:
    """Yield what may be left of each pending operation: None for all of it, else the parts that are."""
    count = len(pending)
    everything: list[Parts] = [None] * count
    nothing: list[Parts] = [()] * count
    yield everything
    if not count:
        return
    yield nothing
    for index, (_, operation) in enumerate(pending):
        if count > 1:
            yield _with(everything, {index: ()})
            yield _with(nothing, {index: None})
        pieces = operation.pieces() if operation.kind == "write" else []
        cuts = list(range(1, len(pieces)))
        for cut in cuts if len(cuts) <= TORN else rng.sample(cuts, TORN):
            yield _with(everything, {index: pieces[:cut]})
            yield _with(nothing, {index: pieces[cut:]})
        if len(pieces) > 2:
            yield _with(everything, {index: [piece for piece in pieces if rng.random() < 0.5]})
    if 2 < count <= PAIRS_UP_TO:
        for one in range(count):
            for two in range(one + 1, count):
                yield _with(everything, {one: (), two: ()})
                yield _with(nothing, {one: None, two: None})
    for _ in range(HALVES if count > 2 else 0):
        yield [None if rng.random() < 0.5 else () for _ in range(count)]


def _with(parts: list[Parts], changed: dict[int, Parts]) -> list[Parts]:
    return [changed.get(index, part) for index, part in enumerate(parts)]


class _Judge:
    """Knows what each sector may be at a point of the log."""

    def __init__(self, record: Recorded) -> None:
        self._record = record
        self._below = memory_disk(record.base)
        self._touched = sorted(record.history)
        self._allowed: dict[int, set[bytes]] = {}

    def move_to(self, position: int) -> None:
        """Let the power fail after so many entries of the log."""
        made = max((changes for returned, changes in self._record.flushes if returned <= position), default=0)
        for sector, writes in self._record.history.items():
            certain = self._record.base[sector * SECTOR : (sector + 1) * SECTOR]
            allowed = set()
            for write in writes:
                if write.change < made:
                    certain = write.content
                elif write.position <= position:
                    allowed.add(write.content)
            self._allowed[sector] = {certain, *allowed}

    def require_sound(self, contents: dict[int, bytearray]) -> None:
        """Open the disk that the power loss has left, and look at every sector; raises Lost or DiskfsError."""
        record = self._record
        storage = SimulatedStorage()
        storage.seen = {
            name: Node(file.number, contents[file.number], bytearray()) for name, file in record.files.items()
        }
        disk = open_disk(storage, record.header, "overlay", self._below)
        if any(node.pending for node in storage.seen.values()):
            raise Lost("opening has changed something")
        found = disk.read_at(0, disk.size)
        clean = 0
        for sector in self._touched:
            start = sector * SECTOR
            if found[start : start + SECTOR] not in self._allowed[sector]:
                raise Lost(f"sector {sector} is neither what it was nor what was written to it")
            if found[clean:start] != record.base[clean:start]:
                raise Lost(f"a sector of {clean:#x} to {start:#x} was never written, and has changed")
            clean = start + SECTOR
        if found[clean:] != record.base[clean:]:
            raise Lost(f"a sector from {clean:#x} was never written, and has changed")
