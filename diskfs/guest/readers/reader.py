"""What every reader can do, and how a path becomes a file with it."""

import abc
import stat
from dataclasses import dataclass
from typing import Generic, TypeVar

from diskfs.guest.errors import GuestError
from diskfs.guest.files import MAX_ENTRIES, FileKind, GuestEntry
from diskfs.guest.resolving import resolve

Node = TypeVar("Node")

MAX_TARGET = 4096
"""Bytes of a link's target, as many as Linux takes."""


@dataclass(frozen=True, slots=True)
class Superblock:
    """What a file system says about itself."""

    label: str = ""
    uuid: str = ""
    size: int = 0
    state: frozenset[str] = frozenset()


class Reader(abc.ABC, Generic[Node]):
    """One file system. Methods raise GuestError, OSError and ValueError for what is damaged."""

    superblock: Superblock

    @abc.abstractmethod
    def root(self) -> Node:
        """Return the top folder."""

    @abc.abstractmethod
    def child(self, folder: Node, name: str) -> Node | None:
        """Look up a name; None if it is not there or `folder` is none."""

    @abc.abstractmethod
    def children(self, folder: Node, limit: int) -> list[tuple[str, Node]]:
        """List a folder without `.` and `..`, stopping after `limit`."""

    @abc.abstractmethod
    def describe(self, node: Node, name: str) -> GuestEntry:
        """Describe a node, with the target if it is a link."""

    @abc.abstractmethod
    def read_at(self, node: Node, offset: int, length: int) -> bytes:
        """Return bytes of a file that lie inside it."""

    def free(self) -> int | None:
        """Return the bytes that are free, None if that is not known."""
        return None

    def systems(self) -> list[tuple[int, str]]:
        """Return number and path of the other subvolumes that hold a system; only Btrfs has any."""
        return []

    def find(self, path: str, *, follow: bool) -> tuple[Node, GuestEntry] | None:
        """Return what is at `path`, links filled in."""
        found = resolve(
            path, (self.root(), "/"), child=self._named_child, target=lambda node: self._target(*node), follow=follow
        )
        return None if found is None else (found[-1][0], self.describe(*found[-1]))

    def list(self, path: str) -> tuple[GuestEntry, ...]:
        """Return a folder's entries by name."""
        found = self.require(path)
        if found[1].kind is not FileKind.FOLDER:
            raise GuestError(f"{path}: it is not a folder")
        children = self.children(found[0], MAX_ENTRIES + 1)
        if len(children) > MAX_ENTRIES:
            raise GuestError(f"{path}: the folder has over {MAX_ENTRIES} entries")
        return tuple(self.describe(node, name) for name, node in sorted(children, key=lambda child: child[0]))

    def require(self, path: str) -> tuple[Node, GuestEntry]:
        """Return what is at `path`; raises GuestError if there is nothing."""
        found = self.find(path, follow=True)
        if found is None:
            raise GuestError(f"{path}: there is no such file")
        return found

    def _named_child(self, folder: tuple[Node, str], name: str) -> tuple[Node, str] | None:
        node = self.child(folder[0], name)
        return None if node is None else (node, name)

    def _target(self, node: Node, name: str) -> str | None:
        entry = self.describe(node, name)
        return entry.target if entry.kind is FileKind.LINK else None


def kind_of_mode(mode: int) -> FileKind:
    """Return the kind that the type bits of a Unix mode stand for."""
    if stat.S_ISREG(mode):
        return FileKind.FILE
    if stat.S_ISDIR(mode):
        return FileKind.FOLDER
    return FileKind.LINK if stat.S_ISLNK(mode) else FileKind.OTHER


def text(data: bytes) -> str:
    """Decode a name; odd bytes become surrogate escapes."""
    return data.decode("utf-8", "surrogateescape")


def hyphened(uuid: bytes) -> str:
    """Write a UUID stored big-endian, or nothing if it is all zero."""
    digits = uuid.hex()
    if not any(uuid):
        return ""
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
