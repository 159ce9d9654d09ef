"""Every power loss that could befall a commit to a file, one by one.

After each change of a file or a name the power fails: what was synced is there, and of the rest all, nothing, all but
one, one alone, pairs, torn ones, random halves; of the names all, the first few, all but one, random halves. The
target has to be absent, the complete old image or the complete new one; absent only if there was no old one; the new
one once the commit has returned. The next commit gives the new image, and leaves no temporary file.
"""

import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from scripts.overlaylib.committing import (
    BYSTANDER,
    TARGETS,
    Broken,
    Files,
    Image,
    Overlay,
    Recorder,
    Target,
    files_of,
    require_next_run,
)
from scripts.overlaylib.folder_losses import name_ways
from scripts.overlaylib.powerloss import Parts, ways
from scripts.overlaylib.simulated import NameChange, Node, Operation

RUNS = 12
"""Runs of data of the disk that is committed."""


@dataclass
class Tally:
    """What was tried, and what was left of the targets."""

    commits: int = 0
    points: int = 0
    states: int = 0
    next_runs: int = 0
    absent: int = 0
    old: int = 0
    new: int = 0
    by_target: dict[str, int] = field(default_factory=dict)


def run(folder: Path, seed: str, tally: Tally, targets: Iterable[Target] = TARGETS, *, runs: int = RUNS) -> None:
    """Let the power fail at every point of commits to all targets, with and without an old one; raises Broken."""
    overlay = Overlay(folder, runs=runs)
    for target in targets:
        # The second name of data files is free again after one replacement: both turns are tried.
        for old_images in (0, 1, 2) if target.variant == "monolithicFlat" else (0, 1):
            before = tally.states
            try:
                with tempfile.TemporaryDirectory(dir=folder) as scratch:
                    _examine_commit(overlay, target, Path(scratch), old_images, seed=seed, tally=tally)
            except Broken as broken:
                olds = f"{old_images} old image{'s' if old_images > 1 else ''}" if old_images else "no old image"
                raise Broken(f"seed {seed}, {target} over {olds}: {broken}") from broken
            name = str(target)
            tally.by_target[name] = tally.by_target.get(name, 0) + tally.states - before
            tally.commits += 1
    overlay.close()


def _examine_commit(
    overlay: Overlay, target: Target, scratch: Path, old_images: int, *, seed: str, tally: Tally
) -> None:
    folder = scratch / "commit"
    folder.mkdir()
    (folder / BYSTANDER).write_bytes(BYSTANDER.encode())
    with Recorder(folder).installed():
        if old_images:
            overlay.write_old(target, folder)
        if old_images > 1:
            # The image that is there has its data under the second name.
            overlay.write_old(target, folder, replace=True)
    recorder = Recorder(folder)
    started = {node.number: bytes(node.synced) for node in recorder.before.values()}
    old = target.image(_content_by_name(recorder.before, started))
    with recorder.installed():
        overlay.commit(target, folder, replace=old is not None)
    overlay.require_unchanged()
    new = target.image(files_of(folder))
    if new is None or (old is not None and new == old):
        raise Broken("the commit has not given a new image")
    rng = random.Random(f"{seed}/{target}/{old_images}")
    _examine(recorder, started, _Judge(overlay, target, old, new, scratch, tally), rng)


def _content_by_name(names: dict[str, Node], content: dict[int, bytes]) -> Files:
    return lambda name: content[names[name].number] if name in names else None


def _examine(recorder: Recorder, started: dict[int, bytes], judge: "_Judge", rng: random.Random) -> None:
    content = dict(started)
    names = dict(recorder.before)
    pending: list[tuple[Node, Operation]] = []
    renamed: list[NameChange] = []
    journal = recorder.journal
    for position in range(len(journal) + 1):
        entry = journal[position - 1] if position else None
        if not position:
            pass
        elif entry is None:
            for change in renamed:
                change.apply(names)
            renamed.clear()
        elif isinstance(entry, NameChange):
            renamed.append(entry)
        elif entry[1] is not None:
            content.setdefault(entry[0].number, b"")
            pending.append((entry[0], entry[1]))
        else:
            content[entry[0].number] = _content(content, pending, [None] * len(pending))(entry[0])
            pending = [item for item in pending if item[0] is not entry[0]]
        judge.tally.points += 1
        for kept_names in name_ways(renamed, rng):
            left = dict(names)
            for change in kept_names:
                change.apply(left)
            for kept in ways(pending, rng):
                judge.tally.states += 1
                try:
                    judge.require_sound(left, _content(content, pending, kept), returned=position == len(journal))
                except Broken as broken:
                    raise Broken(
                        f"after {position} of {len(journal)} calls, names kept "
                        f"{[change.name for change in kept_names]}, writes kept {kept}: {broken}"
                    ) from broken


def _content(
    synced: dict[int, bytes], pending: list[tuple[Node, Operation]], kept: list[Parts]
) -> Callable[[Node], bytes]:
    """Return what gives the content of a file; most states show none that is new, so it is made when asked for."""

    def content(node: Node) -> bytes:
        if all(owner is not node for owner, _ in pending):
            return synced.get(node.number, b"")
        data = bytearray(synced.get(node.number, b""))
        for (owner, operation), parts in zip(pending, kept, strict=True):
            if owner is node and (parts is None or parts):
                operation.apply(data, parts)
        return bytes(data)

    return content


@dataclass
class _Judge:
    """Knows what may be left of a target."""

    overlay: Overlay
    target: Target
    old: Image | None
    new: Image
    scratch: Path
    tally: Tally
    seen: set[object] = field(default_factory=set)
    """The folders in which a next run was tried."""

    def require_sound(self, left: dict[str, Node], content: Callable[[Node], bytes], *, returned: bool) -> None:
        """Look at the target that a power loss has left, and commit again; raises Broken."""

        def files(name: str) -> bytes | None:
            node = left.get(name)
            return None if node is None else content(node)

        found = self.target.image(files)
        if found == self.new:
            self.tally.new += 1
        elif returned:
            raise Broken("the commit has returned, and its target is not there")
        elif found is None:
            self.tally.absent += 1
            if self.old is not None:
                raise Broken("the old image is gone, and the new one is not there")
        elif found == self.old:
            self.tally.old += 1
        else:
            raise Broken("the target is neither the old image nor the new one")
        if files(BYSTANDER) != BYSTANDER.encode():
            raise Broken("another file was changed")
        self._require_next_run(left, content)

    def _require_next_run(self, left: dict[str, Node], content: Callable[[Node], bytes]) -> None:
        # What temporary files hold is of no importance, so one run is enough for each set of names.
        key = frozenset((name, node.number) for name, node in left.items())
        if key in self.seen:
            return
        self.seen.add(key)
        folder = self.scratch / f"next-{len(self.seen)}"
        folder.mkdir()
        places: dict[int, Path] = {}
        for name, node in left.items():
            path = folder / name
            if node.number in places:
                os.link(places[node.number], path)
            else:
                path.write_bytes(content(node))
                places[node.number] = path
        require_next_run(self.overlay, self.target, folder, self.new)
        shutil.rmtree(folder)
        self.tally.next_runs += 1
