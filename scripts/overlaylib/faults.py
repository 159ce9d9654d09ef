"""Every call to the storage of an overlay fails, one after the other, in every way: once, or from then on.

A script of all operations of an overlay runs again and again; in the run k the call k fails. Whatever an operation then
does, it either did what it promises or raises a DiskfsError; what the disk holds is compared after each step, after
opening it again on sound storage, and after a power loss.
"""

import errno
import os
import random
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from diskfs.disks.opening import OpenedSource, open_source
from diskfs.disks.overlay import OverlayDisk, OverlayFolder
from diskfs_formats.errors import DiskfsError
from diskfs_formats.findings import Severity
from scripts.overlaylib.simulated import SECTOR, Node, Operation, SimulatedStorage, write_partly

FOLDER = Path("overlay")
SIZE = 40 * 512 + 100
BLOCK = 2048


@dataclass(frozen=True, slots=True)
class Fault:
    """How calls fail: with `number`, `once` or from then on; a write after its first part if it is `short`."""

    name: str
    number: int
    once: bool
    kinds: frozenset[str] | None = None
    """The calls that can fail so; None for all."""
    short: bool = False


_SYNCS = frozenset({"sync", "sync-names"})
_ROOM = frozenset({"write", "size", "reserve", "hole", "open", "make-folder", "rename", "sync", "sync-names"})
FAULTS = tuple(
    Fault(f"{name}, {'once' if once else 'for good'}", number, once, kinds, short)
    for once in (True, False)
    for name, number, kinds, short in (
        ("EIO", errno.EIO, None, False),
        ("ENOSPC", errno.ENOSPC, _ROOM, False),
        ("short write, then ENOSPC", errno.ENOSPC, frozenset({"write"}), True),
        ("short write, then EIO", errno.EIO, frozenset({"write"}), True),
        ("failing sync", errno.EIO, _SYNCS, False),
    )
)


class Wrong(Exception):
    """An operation did something else than it promises and raised nothing."""


@dataclass
class Tally:
    """What was tried: runs, errors reported, and calls by operation."""

    runs: int = 0
    errors: int = 0
    calls: Counter[str] = field(default_factory=Counter)


class _Failing:
    """A watcher that fails the call `at`, counted among those that the fault is for."""

    def __init__(self, fault: Fault, at: int) -> None:
        self._fault = fault
        self._at = at
        self.count = 0
        self.armed = True

    def __call__(self, kind: str, node: Node | None, operation: Operation | None) -> None:
        fault = self._fault
        if not self.armed or kind in ("forget", "synced") or (fault.kinds is not None and kind not in fault.kinds):
            return
        self.count += 1
        if self.count == self._at or (self.count > self._at and not fault.once):
            if fault.short and node is not None and operation is not None and operation.length > SECTOR:
                # Linux writes a page of its cache as a whole, so what lies in one sector is not cut.
                write_partly(node, operation, operation.length // 2 // SECTOR * SECTOR)
            raise OSError(fault.number, os.strerror(fault.number))


class _Sectors:
    """What each sector of the disk may be: now, and after whatever happens."""

    def __init__(self, content: bytes) -> None:
        self.now = [{content[start : start + SECTOR]} for start in range(0, len(content), SECTOR)]
        self.later = [set(sector) for sector in self.now]

    def change(self, offset: int, data: bytes, *, certain: bool) -> None:
        """Note a write, which has happened, or each sector of which may have."""
        for number in range(offset // SECTOR, -(-(offset + len(data)) // SECTOR)):
            start = number * SECTOR
            one, two = max(offset - start, 0), min(offset + len(data) - start, SECTOR)
            part = data[start + one - offset : start + two - offset]
            new = {old[:one] + part + old[two:] for old in self.now[number]}
            self.now[number] = new if certain else self.now[number] | new
            self.later[number] |= new

    def flushed(self) -> None:
        """Note that what is there now stays."""
        self.later = [set(sector) for sector in self.now]

    def require(self, found: bytes, allowed: list[set[bytes]], offset: int = 0) -> None:
        """Raise Wrong unless each whole sector of `found` is one that may be."""
        for number, start in enumerate(range(0, len(found), SECTOR), offset // SECTOR):
            sector = found[start : start + SECTOR]
            if sector not in allowed[number]:
                raise Wrong(f"sector {number} is not what it may be")

    def settle(self, found: bytes) -> None:
        """Note that the disk is `found`, for good."""
        self.now = [{found[start : start + SECTOR]} for start in range(0, len(found), SECTOR)]
        self.flushed()


class _Run:
    """One run of the script."""

    def __init__(self, source: OpenedSource, base: bytes, storage: SimulatedStorage, tally: Tally) -> None:
        self.source = source
        self.storage = storage
        self.tally = tally
        self.sectors = _Sectors(base)
        self.overlay: OverlayFolder | None = None
        self.rng = random.Random(1)
        self.removed = False

    def script(self) -> list[tuple[str, Callable[[], None]]]:
        """Return all operations of an overlay, in an order in which each finds something to do."""
        return [
            ("create", self.open),
            ("write", lambda: self.write(0, 3 * BLOCK)),
            ("write in blocks", lambda: self.write(2 * BLOCK + 700, 1500)),
            ("write zeroes", lambda: self.write(5 * BLOCK, BLOCK, zero=True)),
            ("read", self.read),
            ("flush", self.flush),
            ("write over", lambda: self.write(100, BLOCK)),
            ("discard", lambda: self.discard(BLOCK - 10, 2 * BLOCK + 30)),
            ("write after discard", lambda: self.write(BLOCK + 512, 100)),
            ("flush again", self.flush),
            ("map", self.map),
            ("write before close", lambda: self.write(8 * BLOCK, SIZE - 8 * BLOCK)),
            ("close", self.close),
            ("inspect", self.inspect),
            ("check", self.check),
            ("open", self.open),
            ("read again", self.read),
            ("write at last", lambda: self.write(3 * BLOCK - 5, 10)),
            ("flush at last", self.flush),
            ("close at last", self.close),
        ]

    def step(self, name: str, action: Callable[[], None], watcher: "_Failing | None") -> None:
        before = watcher.count if watcher is not None else 0
        try:
            action()
        except DiskfsError:
            self.tally.errors += 1
        if watcher is not None:
            self.tally.calls[name] = max(self.tally.calls[name], watcher.count - before)

    def open(self) -> None:
        if self.overlay is None:
            self.overlay = OverlayFolder.open(FOLDER, self.source, storage=self.storage, block_size=BLOCK)
            self.settle()

    def settle(self) -> None:
        """What is seen after opening stays: note it, on storage that does not fail."""
        assert self.overlay is not None
        watcher, self.storage.watcher = self.storage.watcher, None
        found = self.overlay.disk(0).read_at(0, SIZE)
        self.storage.watcher = watcher
        self.sectors.require(found, self.sectors.later)
        self.sectors.settle(found)

    def write(self, offset: int, length: int, *, zero: bool = False) -> None:
        if self.overlay is None:
            return
        data = bytes(length) if zero else self.rng.randbytes(length)
        self._change(offset, data, lambda: self._disk.write_at(offset, data))

    def discard(self, offset: int, length: int) -> None:
        if self.overlay is not None:
            self._change(offset, bytes(length), lambda: self._disk.discard(offset, length))

    @property
    def _disk(self) -> OverlayDisk:
        assert self.overlay is not None
        return self.overlay.disk(0)

    def _change(self, offset: int, data: bytes, action: Callable[[], None]) -> None:
        try:
            action()
        except DiskfsError:
            self.sectors.change(offset, data, certain=False)
            raise
        self.sectors.change(offset, data, certain=True)

    def read(self) -> None:
        if self.overlay is not None:
            self.sectors.require(self._disk.read_at(0, SIZE), self.sectors.now)

    def flush(self) -> None:
        if self.overlay is not None:
            self._disk.flush()
            self.sectors.flushed()

    def map(self) -> None:
        if self.overlay is not None and sum(extent.length for extent in self._disk.changes()) != SIZE:
            raise Wrong("the map does not cover the disk")

    def close(self) -> None:
        if self.overlay is not None:
            overlay, self.overlay = self.overlay, None
            overlay.close()
            self.sectors.flushed()

    def inspect(self) -> None:
        OverlayFolder.inspect(FOLDER, storage=self.storage)

    def check(self) -> None:
        findings = [
            item for item in OverlayFolder.check(FOLDER, storage=self.storage) if item.severity is Severity.ERROR
        ]
        if findings:
            raise Wrong(f"the check finds {findings[0].message}")


def run(folder: Path, tally: Tally) -> None:
    """Fail every call of the script in every way; raises Wrong. `folder` is where the source goes."""
    base = random.Random(2).randbytes(SIZE)
    (folder / "source.raw").write_bytes(base)
    with closing(open_source(str(folder / "source.raw"), format_name="raw")) as source:
        for fault in FAULTS:
            at = 1
            while _one(source, base, fault, at, tally):
                at += 1
        removing(source, tally)


def _one(source: OpenedSource, base: bytes, fault: Fault, at: int, tally: Tally) -> bool:
    """Run the script with one fault; tells whether it came to it."""
    storage = SimulatedStorage()
    watcher = _Failing(fault, at)
    attempt = _Run(source, base, storage, tally)
    tally.runs += 1
    try:
        storage.watcher = watcher
        for name, action in attempt.script():
            attempt.step(name, action, watcher)
        watcher.armed = False
        if attempt.overlay is not None:
            attempt.step("", attempt.close, None)
        # The storage is sound again: the overlay opens without a manual step, and has what it must have.
        attempt.open()
        attempt.read()
        attempt.close()
        attempt.check()
        # Nothing was written since, so a power loss changes nothing.
        attempt.storage = storage.after_power_loss()
        attempt.open()
        attempt.close()
        attempt.check()
    except (Wrong, DiskfsError) as error:
        raise Wrong(f"{fault.name}, call {at}: {error}") from error
    return watcher.count >= at


def removing(source: OpenedSource, tally: Tally) -> None:
    """Fail every call of a removal; afterwards the overlay is whole or gone, and removing it again succeeds."""
    for once in (True, False):
        at = 1
        while True:
            storage = SimulatedStorage()
            with OverlayFolder.open(FOLDER, source, storage=storage, block_size=BLOCK) as overlay:
                overlay.disk(0).write_at(0, b"changed")
            watcher = _Failing(Fault("EIO", errno.EIO, once), at)
            storage.watcher = watcher
            try:
                OverlayFolder.remove(FOLDER, storage=storage)
            except DiskfsError:
                tally.errors += 1
            tally.runs += 1
            tally.calls["remove"] = max(tally.calls["remove"], watcher.count)
            watcher.armed = False
            if storage.seen is not None:
                with OverlayFolder.open(FOLDER, source, storage=storage, block_size=BLOCK) as overlay:
                    found = overlay.disk(0).read_at(0, 7)
                    if found not in (b"changed", source.disk(0).image.read_at(0, 7)):
                        raise Wrong(f"removing, call {at}: the overlay is neither whole nor gone")
                OverlayFolder.remove(FOLDER, storage=storage)
            if storage.seen is not None:
                raise Wrong(f"removing, call {at}: the folder is still there")
            if watcher.count < at:
                break
            at += 1
