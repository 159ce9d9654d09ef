"""GuestFiles whose file system is read by the child."""

from collections.abc import Sequence
from typing import Any

from diskfs.guest import messages
from diskfs.guest.child import ReadingChild
from diskfs.guest.errors import GuestError
from diskfs.guest.files import FileKind, GuestEntry, normalised
from diskfs.guest.readers.device import Segment
from diskfs_formats.source import ByteSource, require_range
from diskfs_formats.text import printable

_UNKNOWN = object()

MAX_READ = messages.MAX_BYTES
"""Bytes of a file asked for in one request."""


class ChildFiles:
    """One file system. Opening it reads its superblock; raises GuestError, or what the disk raises."""

    def __init__(  # noqa: PLR0917 - all of them say which file system it is
        self,
        child: ReadingChild,
        number: int,
        volume: str,
        kind: str,
        segments: Sequence[Segment],
        subvolume: int | None = None,
    ) -> None:
        self._child = child
        self._number = number
        self.volume = volume
        self.kind = kind
        self._opening = {"do": "open", "volume": number, "kind": kind, "segments": [list(piece) for piece in segments]}
        if subvolume is not None:
            self._opening["subvolume"] = subvolume
        self._gone = ""
        answer, _, self._opened_in = child.request(volume, self._opening)
        try:
            self.label = str(answer["label"])
            self.uuid = str(answer["uuid"])
            self.size = int(answer["size"])
            self.state = frozenset(str(word) for word in answer["state"])
        except (LookupError, TypeError, ValueError) as error:
            raise self._nonsense() from error
        self._free: Any = _UNKNOWN

    @property
    def free(self) -> int | None:
        """Bytes that are free, counted when first asked; None if that is not cheap or cannot be told."""
        if self._free is _UNKNOWN:
            try:
                free = self._ask("", {"do": "free"})[0]["free"]
            except GuestError:
                free = None
            self._free = free if free is None or type(free) is int else None
        return self._free  # type: ignore[no-any-return]  # None or int, as the line above says

    def systems(self) -> list[tuple[int, str]]:
        """Return number and name of the other subvolumes that hold a system; only Btrfs has any."""
        systems = self._ask("", {"do": "systems"})[0].get("systems")
        if not isinstance(systems, list):
            raise self._nonsense()
        return [(int(number), str(name)) for number, name in systems]

    def entry(self, path: str, *, follow: bool = True) -> GuestEntry | None:
        normalised(path)
        values = self._ask(path, {"do": "entry", "path": path, "follow": follow})[0].get("entry")
        return None if values is None else self._entry(values)

    def entries(self, path: str) -> tuple[GuestEntry, ...]:
        normalised(path)
        values = self._ask(path, {"do": "entries", "path": path})[0].get("entries")
        if not isinstance(values, list):
            raise self._nonsense()
        return tuple(self._entry(value) for value in values)

    def read(self, path: str, *, limit: int) -> bytes:
        source = self.open(path)
        if source.size > limit:
            raise GuestError(
                f"{self.volume}: {printable(path)}: the file has {source.size} bytes, over the limit of {limit}"
            )
        return source.read_at(0, source.size)

    def open(self, path: str) -> ByteSource:
        normalised(path)
        size = self._ask(path, {"do": "size", "path": path})[0].get("size")
        if type(size) is not int or size < 0:
            raise self._nonsense()
        return _ChildFile(self, path, size)

    def read_part(self, path: str, offset: int, length: int) -> bytes:
        """Return bytes of a file that lie inside it; at most `MAX_READ`."""
        _, data = self._ask(path, {"do": "read", "path": path, "offset": offset, "length": length})
        if len(data) != length:
            raise self._nonsense()
        return data

    def _ask(self, path: str, message: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        if self._gone:
            raise GuestError(self._gone)
        about = f"{self.volume}: {printable(path)}" if path else self.volume
        starts = self._child.starts
        try:
            answer, data, self._opened_in = self._child.request(
                about, message | {"volume": self._number}, (self._opened_in, self._opening)
            )
        except GuestError as error:
            if self._child.pid is None and self._child.starts >= starts:
                self._gone = str(error)  # it ended over this volume, and would again
            raise
        return answer, data

    def _entry(self, values: Any) -> GuestEntry:
        try:
            name, kind, size, mode, target, mtime, uid = values
            if not (
                isinstance(name, str)
                and isinstance(target, str)
                and all(type(n) is int for n in (size, mode, mtime, uid))
            ):
                raise self._nonsense()
            return GuestEntry(name, FileKind(kind), size, mode, target, mtime, uid)
        except (TypeError, ValueError) as error:
            raise self._nonsense() from error

    def _nonsense(self) -> GuestError:
        return GuestError(f"{self.volume}: the answer of the process that reads it makes no sense")


class _ChildFile:
    def __init__(self, files: ChildFiles, path: str, size: int) -> None:
        self._files = files
        self._path = path
        self.name = f"{files.volume}: {printable(path)}"
        self.size = size

    def read_at(self, offset: int, length: int, /) -> bytes:
        require_range(self, offset, length)
        parts = []
        while length:
            count = min(length, MAX_READ)
            parts.append(self._files.read_part(self._path, offset, count))
            offset += count
            length -= count
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        pass
