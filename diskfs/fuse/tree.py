"""The files and folders of a mount, with no FUSE in it: inode numbers are fixed when the tree is built."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from diskfs_formats.source import ByteSource

if TYPE_CHECKING:
    from diskfs.fuse.written import Window

ROOT_INODE = 1


@dataclass(frozen=True, slots=True)
class File:
    """A file whose bytes come from a source. `allocated` gives its allocated bytes, and may take a while.

    Of a `deferred` file, finding out the size may take a while too, once; its bytes are those of other files. One with
    a `window` can be written: it shows part of a disk that can be changed.
    """

    name: str
    content: ByteSource
    allocated: Callable[[], int] | None = None
    deferred: bool = False
    window: "Window | None" = None


@dataclass(frozen=True, slots=True)
class Directory:
    """A folder."""

    name: str
    children: "tuple[File | Directory, ...]" = ()


Entry: TypeAlias = File | Directory


@dataclass(slots=True)
class Node:
    """An entry at its place in the tree."""

    inode: int
    parent: int
    entry: Entry
    children: "dict[str, Node]" = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The entry's name."""
        return self.entry.name


class Tree:
    """A tree that never changes. Looking things up waits for nothing."""

    def __init__(self, root: Node, nodes: dict[int, Node]) -> None:
        self.root = root
        self._nodes = nodes

    @classmethod
    def build(cls, children: Iterable[Entry]) -> "Tree":
        """Number all entries, breadth first in the order given, so that one source has the same inodes each time.

        Raises ValueError for two entries of one name in one folder.
        """
        numbers = itertools.count(ROOT_INODE)
        root = Node(next(numbers), ROOT_INODE, Directory("", tuple(children)))
        nodes = {root.inode: root}
        waiting = [root]
        for folder in waiting:
            assert isinstance(folder.entry, Directory)
            for entry in folder.entry.children:
                if entry.name in folder.children:
                    raise ValueError(f"two entries are called {entry.name!r}")
                node = Node(next(numbers), folder.inode, entry)
                folder.children[entry.name] = node
                nodes[node.inode] = node
                if isinstance(entry, Directory):
                    waiting.append(node)
        return cls(root, nodes)

    def node(self, inode: int) -> Node | None:
        """Return the entry with this inode number."""
        return self._nodes.get(inode)

    def child(self, inode: int, name: str) -> Node | None:
        """Return the entry `name` of a folder; `.` and `..` included."""
        folder = self._nodes.get(inode)
        if folder is None:
            return None
        if name == ".":
            return folder
        if name == "..":
            return self._nodes[folder.parent]
        return folder.children.get(name)

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes.values())

    def __len__(self) -> int:
        return len(self._nodes)
