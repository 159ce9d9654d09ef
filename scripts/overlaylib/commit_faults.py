"""Every call by which a commit changes a file or a name fails, one after the other, in every way: once, or for good.

The commit then either gives the right image, which a power loss does not take away, or raises a DiskfsError. The
target is the complete old image or the complete new one, and absent only if there was no old one; the overlay is
unchanged, and the next commit gives the new image and leaves no temporary file.
"""

import errno
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from diskfs_formats.errors import DiskfsError
from scripts.overlaylib.committing import (
    BYSTANDER,
    TARGETS,
    Broken,
    Image,
    Overlay,
    Recorder,
    Target,
    files_of,
    partial_names,
    require_next_run,
)

RUNS = 5
"""Runs of data of the disk that is committed."""


@dataclass(frozen=True, slots=True)
class Fault:
    """How calls fail: `once` or from then on, with `number`; a write is short first if `short`, all of it if 0."""

    name: str
    once: bool
    kinds: frozenset[str]
    """The calls that can fail so."""
    number: int = 0
    short: int | None = None
    """Writes do one byte in so many, or 0 for none, before one fails; without `number` none fails."""
    harmless: bool = False
    """Whether the commit has to succeed."""

    def __str__(self) -> str:
        return f"{self.name}, {'once' if self.once else 'for good'}"


_WRITES = frozenset({"write"})
_SYNCS = frozenset({"sync", "sync-names"})
_ALL = frozenset({"create", "lock", "write", "size", "sync", "close", "link", "rename", "unlink", "sync-names"})
_ROOM = frozenset({"create", "write", "size", "sync", "link", "rename", "sync-names"})
FAULTS = tuple(
    fault
    for once in (True, False)
    for fault in (
        Fault("EIO", once, _ALL, errno.EIO),
        Fault("ENOSPC", once, _ROOM, errno.ENOSPC),
        Fault("failing sync", once, _SYNCS, errno.EIO),
        Fault("short write", once, _WRITES, short=2, harmless=True),
        Fault("short write, then ENOSPC", once, _WRITES, errno.ENOSPC, short=2),
        Fault("short write, then EIO", once, _WRITES, errno.EIO, short=2),
        Fault("nothing written", once, _WRITES, short=0, harmless=once),
        Fault("no links", once, frozenset({"link"}), errno.EPERM, harmless=True),
        # A file that could not be locked once is a stale one to whoever can lock it, also to the same run.
        Fault("no locks", once, frozenset({"lock"}), errno.ENOLCK, harmless=not once),
        Fault("folders cannot be synced", once, frozenset({"sync-names"}), errno.EIO),
    )
)


@dataclass
class Tally:
    """What was tried: runs, errors reported, of them some with the new image in place, and calls that can fail."""

    runs: int = 0
    errors: int = 0
    errors_after: int = 0
    calls: Counter[str] = field(default_factory=Counter)


class _Failing:
    """A watcher that fails the call `at`, counted among those that the fault is for."""

    def __init__(self, fault: Fault, at: int) -> None:
        self._fault = fault
        self._at = at
        self.count = 0
        self.failed: set[str] = set()

    def __call__(self, kind: str, length: int) -> int:
        fault = self._fault
        if kind not in fault.kinds:
            return length
        self.count += 1
        after = self.count - self._at
        if fault.short is not None:
            if fault.number and (after == 1 or (after > 1 and not fault.once)):
                self._fail(kind)
            if after == 0 or (after > 0 and not fault.once):
                self.failed.add(kind)
                return -(-length // fault.short) if fault.short else 0
        elif after == 0 or (after > 0 and not fault.once):
            self._fail(kind)
        return length

    def _fail(self, kind: str) -> None:
        self.failed.add(kind)
        raise OSError(self._fault.number, os.strerror(self._fault.number))


def run(
    folder: Path,
    tally: Tally,
    targets: Iterable[Target] = TARGETS,
    faults: Iterable[Fault] = FAULTS,
    *,
    runs: int = RUNS,
) -> None:
    """Fail every call of commits to all targets, with and without an old one, in every way; raises Broken."""
    overlay = Overlay(folder, runs=runs)
    faults = tuple(faults)
    for target in targets:
        for with_old in (False, True):
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                trial = _Trial.of(overlay, target, Path(scratch), tally, with_old=with_old)
                for fault in faults:
                    at = 1
                    while trial.run(fault, at):
                        at += 1
    overlay.close()


@dataclass(frozen=True, slots=True)
class _Trial:
    """A commit that is tried again and again: the folder that it begins with, and what may come of it."""

    overlay: Overlay
    target: Target
    begin: Path
    old: Image | None
    new: Image
    tally: Tally

    @classmethod
    def of(cls, overlay: Overlay, target: Target, scratch: Path, tally: Tally, *, with_old: bool) -> "_Trial":
        begin, whole = scratch / "begin", scratch / "whole"
        begin.mkdir()
        (begin / BYSTANDER).write_bytes(BYSTANDER.encode())
        if with_old:
            overlay.write_old(target, begin)
        old = target.image(files_of(begin))
        shutil.copytree(begin, whole)
        recorder = Recorder(whole, lambda kind, length: (tally.calls.update({kind: 1}), length)[1])
        with recorder.installed():
            overlay.commit(target, whole, replace=with_old)
        new = target.image(files_of(whole))
        assert new is not None
        return cls(overlay, target, begin, old, new, tally)

    def run(self, fault: Fault, at: int) -> bool:
        """Commit with one fault, then without one; tells whether it came to it. Raises Broken."""
        folder = self.begin.parent / "now"
        shutil.copytree(self.begin, folder)
        watcher = _Failing(fault, at)
        recorder = Recorder(folder, watcher)
        error: DiskfsError | None = None
        self.tally.runs += 1
        try:
            with recorder.installed():
                try:
                    self.overlay.commit(self.target, folder, replace=self.old is not None)
                except DiskfsError as raised:
                    error = raised
            self._require_sound(recorder, folder, error, fault, watcher)
            require_next_run(self.overlay, self.target, folder, self.new)
        except Broken as broken:
            over = "over an old image" if self.old is not None else "over none"
            raise Broken(f"{self.target} {over}: {fault}, call {at}, said {error}: {broken}") from broken
        finally:
            shutil.rmtree(folder)
        return watcher.count >= at

    def _require_sound(
        self, recorder: Recorder, folder: Path, error: DiskfsError | None, fault: Fault, watcher: _Failing
    ) -> None:
        self.overlay.require_unchanged()
        found = self.target.image(files_of(folder))
        if error is None:
            if self.new != found:
                raise Broken("no error was reported, and the image is not right")
            if self.target.image(recorder.durable) != self.new:
                raise Broken("no error was reported, and a power loss takes the image away")
        else:
            self.tally.errors += 1
            if fault.harmless:
                raise Broken("it could have gone on")
            if found == self.new and self.old != self.new:
                self.tally.errors_after += 1
                # Not every error can be undone once the name has changed, but then the message has to say so.
                if "complete" not in str(error):
                    raise Broken("the new image is there, and the error does not say so")
            elif found != self.old:
                raise Broken("the target is neither what it was nor the new image")
        if partial_names(folder) and "unlink" not in watcher.failed:
            raise Broken("a temporary file was left, though it could be removed")
