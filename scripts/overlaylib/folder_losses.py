"""Power losses while an overlay is made, used and removed: names may be lost as well as content.

Opening the folder afterwards must succeed without a manual step, and show the disk as it was at the last flush that
had returned, or with what was written since; where the overlay was not finished or was being removed, as it is in the
source.
"""

import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from diskfs.disks.opening import OpenedSource, open_source
from diskfs.disks.overlay import OverlayFolder
from diskfs_formats.errors import DiskfsError
from scripts.overlaylib.powerloss import Lost, Parts, Tally, ways
from scripts.overlaylib.simulated import Entry, NameChange, Node, Operation, SimulatedStorage

FOLDER = Path("overlay")
SIZE = 3 * 512 + 20


def run(folder: Path, tally: Tally) -> None:
    """Let the power fail at every point of the life of an overlay; raises Lost. The source is put in `folder`."""
    base = random.Random(3).randbytes(SIZE)
    (folder / "source.raw").write_bytes(base)
    with closing(open_source(str(folder / "source.raw"), format_name="raw")) as source:
        storage = SimulatedStorage()
        # What the disk may be, from which entry of the journal on.
        stages: list[tuple[int, set[bytes]]] = [(0, {base})]
        with OverlayFolder.open(FOLDER, source, storage=storage, block_size=512) as overlay:
            first = b"1" * 700 + base[700:]
            stages.append((len(storage.journal), {base, first, base[:512] + first[512:], first[:512] + base[512:]}))
            overlay.disk(0).write_at(0, b"1" * 700)
            overlay.disk(0).flush()
            stages.append((len(storage.journal), {first}))
        with OverlayFolder.open(FOLDER, source, storage=storage) as overlay:
            second = first[:1024] + bytes(SIZE - 1024)
            stages.append(
                (len(storage.journal), {first, second, first[:1536] + second[1536:], second[:1536] + first[1536:]})
            )
            overlay.disk(0).discard(1024, SIZE - 1024)
        stages.append((len(storage.journal), {second}))
        stages.append((len(storage.journal), {second, base}))
        OverlayFolder.remove(FOLDER, storage=storage)
        stages.append((len(storage.journal), {base}))
        _examine(source, storage.journal, stages, tally)


def _examine(source: OpenedSource, journal: list[Entry], stages: list[tuple[int, set[bytes]]], tally: Tally) -> None:
    rng = random.Random(4)
    for position in range(len(journal) + 1):
        # An operation may have begun before it left a trace, so the stage before counts at its last point too.
        allowed = [disks for start, disks in stages if start <= position][-1]
        tally.points += 1
        for storage, kept in _left(journal[:position], rng):
            tally.states += 1
            try:
                with OverlayFolder.open(FOLDER, source, storage=storage) as overlay:
                    found = overlay.disk(0).read_at(0, SIZE)
                findings = [finding.message for finding in OverlayFolder.check(FOLDER, storage=storage)]
                if found not in allowed or findings:
                    raise Lost(f"the disk is another: {findings}")
            except (Lost, DiskfsError) as error:
                raise Lost(f"a folder after {position} of {len(journal)} operations, kept {kept}: {error}") from error


def _left(journal: list[Entry], rng: random.Random) -> Iterator[tuple[SimulatedStorage, object]]:
    """Yield the folders that a power loss after these operations can leave."""
    content: dict[int, bytearray] = {}
    names: dict[str, Node] = {}
    pending: list[tuple[Node, Operation]] = []
    renamed: list[NameChange] = []
    for entry in journal:
        if entry is None:
            for change in renamed:
                change.apply(names)
            renamed.clear()
        elif isinstance(entry, NameChange):
            renamed.append(entry)
        elif entry[1] is not None:
            content.setdefault(entry[0].number, bytearray())
            pending.append((entry[0], entry[1]))
        else:
            node = entry[0]
            for owner, operation in pending:
                if owner is node:
                    operation.apply(content[node.number])
            pending = [item for item in pending if item[0] is not node]
    for kept_names in name_ways(renamed, rng):
        for kept in ways(pending, rng):
            yield _folder(content, names, pending, kept, kept_names), (kept_names, kept)


def name_ways(renamed: list[NameChange], rng: random.Random) -> Iterator[list[NameChange]]:
    """Yield the changes of names that may be left: all, the first few, all but one, or a random half."""
    for count in range(len(renamed) + 1):
        yield renamed[:count]
    for index in range(len(renamed) - 1):
        yield renamed[:index] + renamed[index + 1 :]
    for _ in range(3 if len(renamed) > 2 else 0):
        yield [change for change in renamed if rng.random() < 0.5]


def _folder(
    content: dict[int, bytearray],
    names: dict[str, Node],
    pending: list[tuple[Node, Operation]],
    kept: list[Parts],
    kept_names: list[NameChange],
) -> SimulatedStorage:
    now = {number: bytearray(data) for number, data in content.items()}
    for (node, operation), parts in zip(pending, kept, strict=True):
        if parts is None or parts:
            operation.apply(now[node.number], parts)
    left = dict(names)
    for change in kept_names:
        change.apply(left)
    storage = SimulatedStorage()
    storage.seen = {
        name: Node(node.number, data := now.get(node.number, bytearray()), bytearray(data))
        for name, node in left.items()
    }
    storage.synced = dict(storage.seen)
    return storage
