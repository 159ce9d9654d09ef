"""A folder in memory that stands in for the storage of an overlay, and remembers what a power loss may undo.

Each file has the content that its process sees and, of every operation since its last sync, what it did. A power loss
keeps what was synced, and of the rest any part: each operation wholly, not at all or, of a write, some of its sectors.
"""

import errno
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from diskfs.disks.overlay.storage import StoredFile
from diskfs_formats.source import Buffer

SECTOR = 512


@dataclass(slots=True)
class Operation:
    """One operation on a file's content: a write of `data`, a hole of `length` bytes, or a new size."""

    kind: str
    offset: int
    length: int
    data: bytes = b""

    def apply(self, content: bytearray, parts: Sequence[tuple[int, int]] | None = None) -> None:
        """Do it, or the parts of it: offsets in the file, from one to another."""
        if self.kind == "size":
            if self.length < len(content):
                del content[self.length :]
            else:
                content.extend(bytes(self.length - len(content)))
            return
        for start, end in parts if parts is not None else ((self.offset, self.offset + self.length),):
            if self.kind == "hole":
                stop = min(end, len(content))
                content[start:stop] = bytes(max(stop - start, 0))
                continue
            if start > len(content):
                content.extend(bytes(start - len(content)))
            content[start:end] = self.data[start - self.offset : end - self.offset]

    def pieces(self) -> list[tuple[int, int]]:
        """Return the (start, end) of its parts in each sector."""
        end = self.offset + self.length
        starts = [self.offset, *range((self.offset // SECTOR + 1) * SECTOR, end, SECTOR)]
        return list(zip(starts, [*starts[1:], end], strict=True))


@dataclass(slots=True, eq=False)
class Node:
    """A file: what is seen of it, what is on the disk, and the operations that lie between."""

    number: int
    seen: bytearray = field(default_factory=bytearray)
    synced: bytearray = field(default_factory=bytearray)
    pending: list[Operation] = field(default_factory=list)
    lost: list[Operation] = field(default_factory=list)
    """Operations whose sync has failed: they are seen, and no later sync writes them."""
    holder: "SimulatedFile | None" = None


def write_partly(node: Node, operation: Operation, count: int) -> None:
    """Do the first `count` bytes of a write, for a watcher that is about to fail it."""
    part = Operation("write", operation.offset, count, operation.data[:count])
    part.apply(node.seen)
    node.pending.append(part)


@dataclass(slots=True)
class NameChange:
    """A name that leads to another file from now on, or, with None, to none; `also` happens with it."""

    name: str
    node: Node | None
    also: "NameChange | None" = None

    def apply(self, names: dict[str, Node]) -> None:
        if self.node is None:
            names.pop(self.name, None)
        else:
            names[self.name] = self.node
        if self.also is not None:
            self.also.apply(names)


Entry: TypeAlias = "tuple[Node, Operation | None] | NameChange | None"
"""Of a journal: an operation on a file or, with None, its sync; a change of names; with None, their sync."""
Watcher = Callable[[str, Node | None, Operation | None], None]
"""Called before each operation with its kind, the file and what it does; may raise OSError in its stead.

`synced` is called after a sync, which can fail no more.
"""


class SimulatedStorage:
    """A folder; see diskfs.disks.overlay.storage.Storage. `watcher` sees every call, and may fail it."""

    def __init__(self, watcher: Watcher | None = None, *, recorded: bool = True) -> None:
        """Begin without a folder; `recorded` is False where no power loss will be asked for."""
        self.watcher = watcher
        self.recorded = recorded
        self.seen: dict[str, Node] | None = None
        self.synced: dict[str, Node] = {}
        self.pending: list[NameChange] = []
        self.journal: list[Entry] = []
        self._numbers = itertools.count()

    def after_power_loss(self) -> "SimulatedStorage":
        """Return what is left if nothing survives that was not synced."""
        left = SimulatedStorage()
        left.seen = {name: _survivor(node) for name, node in self.synced.items()}
        left.synced = dict(left.seen)
        return left

    def watch(self, kind: str, node: Node | None = None, operation: Operation | None = None) -> None:
        """Tell the watcher."""
        if self.watcher is not None:
            self.watcher(kind, node, operation)

    def make_folder(self) -> None:
        self.watch("make-folder")
        if self.seen is None:
            self.seen = {}

    def owner(self) -> int:
        """Return that it is ours."""
        return os.geteuid()

    def names(self) -> list[str]:
        self.watch("names")
        return list(self._names())

    def _names(self) -> dict[str, Node]:
        if self.seen is None:
            raise _error(errno.ENOENT)
        return self.seen

    def open(self, name: str, /, *, create: bool = False, write: bool = True) -> "SimulatedFile":  # noqa: ARG002
        self.watch("open")
        node = self._names().get(name)
        if node is None:
            if not create:
                raise _error(errno.ENOENT)
            node = Node(next(self._numbers))
            self._change(NameChange(name, node))
        return SimulatedFile(self, node)

    def _change(self, change: NameChange) -> None:
        change.apply(self._names())
        self.pending.append(change)
        self.journal.append(change)

    def rename(self, name: str, new_name: str, /) -> None:
        self.watch("rename")
        self._change(NameChange(new_name, self._names()[name], NameChange(name, None)))

    def unlink(self, name: str, /) -> None:
        self.watch("unlink")
        if name not in self._names():
            raise _error(errno.ENOENT)
        self._change(NameChange(name, None))

    def is_current(self, name: str, file: StoredFile, /) -> bool:
        self.watch("is-current")
        return isinstance(file, SimulatedFile) and self._names().get(name) is file.node

    def sync(self) -> None:
        self.watch("sync-names")
        for change in self.pending:
            change.apply(self.synced)
        self.pending.clear()
        self.journal.append(None)

    def remove_folder(self) -> None:
        self.watch("remove-folder")
        if self._names():
            raise _error(errno.ENOTEMPTY)
        self.seen = None


class SimulatedFile:
    """An open file of a SimulatedStorage; see diskfs.disks.overlay.storage.StoredFile."""

    def __init__(self, storage: SimulatedStorage, node: Node) -> None:
        self.storage = storage
        self.node = node

    def read_at(self, offset: int, length: int, /) -> bytes:
        if self.storage.watcher is not None:
            self.storage.watch("read", self.node)
        return bytes(self.node.seen[offset : offset + length])

    def read_if_ready(self, offset: int, length: int, /) -> Buffer | None:
        return self.read_at(offset, length)

    def _do(self, operation: Operation) -> None:
        self.storage.watch(operation.kind, self.node, operation)
        operation.apply(self.node.seen)
        if self.storage.recorded:
            self.node.pending.append(operation)
            self.storage.journal.append((self.node, operation))

    def write_at(self, offset: int, data: Buffer, /) -> None:
        if self.storage.recorded:
            self._do(Operation("write", offset, len(data), bytes(data)))
        else:
            self.node.seen[offset : offset + len(data)] = data

    def punch(self, offset: int, length: int, /) -> bool:
        self._do(Operation("hole", offset, length))
        return True

    def reserve(self, offset: int, length: int, /) -> None:  # noqa: ARG002 - there is always room
        self.storage.watch("reserve", self.node)

    def data_ranges(self, start: int, end: int, /) -> Iterator[tuple[int, int]]:
        self.storage.watch("data-ranges", self.node)
        content = self.node.seen
        while start < end:
            stop = min(start + 4096, end, len(content))
            if start >= stop:
                return
            if any(content[start:stop]):
                yield start, stop
            start = stop

    def truncate(self, size: int, /) -> None:
        self._do(Operation("size", 0, size))

    def size(self) -> int:
        self.storage.watch("size", self.node)
        return len(self.node.seen)

    def begin_writeback(self) -> None:
        """Promise nothing: any write that was not synced may be on the disk anyhow."""

    def sync(self) -> None:
        node = self.node
        try:
            self.storage.watch("sync", node)
        except OSError:
            # As Linux does it: the pages are clean afterwards, and only what was written before is on the disk.
            node.lost += node.pending
            node.pending.clear()
            raise
        for operation in node.pending:
            operation.apply(node.synced)
        node.pending.clear()
        if self.storage.recorded:
            self.storage.journal.append((node, None))
        self.storage.watch("synced", node)

    def forget_clean_pages(self) -> None:
        self.storage.watch("forget", self.node)
        if self.node.lost:
            self.node.lost.clear()
            self.node.seen[:] = self.node.synced
            for operation in self.node.pending:
                operation.apply(self.node.seen)

    def owner(self) -> tuple[int, int]:
        """Return that it is ours."""
        return os.geteuid(), 0o100600

    def lock(self) -> bool:
        self.storage.watch("lock", self.node)
        if self.node.holder is None:
            self.node.holder = self
        return self.node.holder is self

    def close(self) -> None:
        if self.node.holder is self:
            self.node.holder = None


def _survivor(node: Node) -> Node:
    return Node(node.number, bytearray(node.synced), bytearray(node.synced))


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
