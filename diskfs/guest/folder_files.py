"""A plain folder of this machine as a guest's file system: for tests, and for trees that are already unpacked."""

import os
import stat
from pathlib import Path

from diskfs.guest.errors import GuestError
from diskfs.guest.files import MAX_ENTRIES, FileKind, GuestEntry
from diskfs.guest.resolving import resolve
from diskfs_formats.source import ByteSource, require_range


class FolderFiles:
    """GuestFiles over a folder; links are followed inside it and never out of it."""

    def __init__(
        self,
        root: Path,
        *,
        kind: str = "ext4",
        label: str = "",
        uuid: str = "",
        size: int = 8 << 30,
        free: int | None = 4 << 30,
        volume: str = "disk0p1",
        state: frozenset[str] = frozenset(),
        ignore_case: bool = False,
    ) -> None:
        self.root = root
        self.kind = kind
        self.label = label
        self.uuid = uuid
        self.size = size
        self.free = free
        self.volume = volume
        self.state = state
        self._ignore_case = ignore_case

    def entry(self, path: str, *, follow: bool = True) -> GuestEntry | None:
        found = self._find(path, follow=follow)
        return None if found is None else _entry(found)

    def entries(self, path: str) -> tuple[GuestEntry, ...]:
        folder = self._require(path)
        if not folder.is_dir():
            raise GuestError(f"{self.volume}: {path}: it is not a folder")
        names = sorted(os.listdir(folder))  # noqa: PTH208 - names alone
        if len(names) > MAX_ENTRIES:
            raise GuestError(f"{self.volume}: {path}: the folder has over {MAX_ENTRIES} entries")
        return tuple(_entry(folder / name) for name in names)

    def read(self, path: str, *, limit: int) -> bytes:
        source = self.open(path)
        if source.size > limit:
            raise GuestError(f"{self.volume}: {path}: it has {source.size} bytes, over the limit of {limit}")
        return source.read_at(0, source.size)

    def open(self, path: str) -> ByteSource:
        found = self._require(path)
        if not found.is_file():
            raise GuestError(f"{self.volume}: {path}: it is not a file")
        return _FolderFile(found, f"{self.volume}: {path}")

    def _require(self, path: str) -> Path:
        found = self._find(path, follow=True)
        if found is None:
            raise GuestError(f"{self.volume}: {path}: there is no such file")
        return found

    def _find(self, path: str, *, follow: bool) -> Path | None:
        trail = resolve(path, self.root, child=self._child, target=_target, follow=follow)
        return trail[-1] if trail else None

    def _child(self, folder: Path, name: str) -> Path | None:
        if folder.is_symlink() or not folder.is_dir():
            return None
        if self._ignore_case:
            names = [found for found in os.listdir(folder) if found.casefold() == name.casefold()]  # noqa: PTH208
            return folder / min(names) if names else None
        found = folder / name
        return found if os.path.lexists(found) else None


class _FolderFile:
    """A file that is opened for each read, so that nobody has to close it."""

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        self.name = name
        self.size = path.stat().st_size

    def read_at(self, offset: int, length: int, /) -> bytes:
        require_range(self, offset, length)
        with self._path.open("rb") as file:
            file.seek(offset)
            return file.read(length)

    def close(self) -> None:
        pass


def _target(path: Path) -> str | None:
    return os.readlink(path) if path.is_symlink() else None  # noqa: PTH115 - as it is written


def _entry(path: Path) -> GuestEntry:
    status = path.lstat()
    mode = status.st_mode
    kind = (
        FileKind.FILE
        if stat.S_ISREG(mode)
        else FileKind.FOLDER
        if stat.S_ISDIR(mode)
        else FileKind.LINK
        if stat.S_ISLNK(mode)
        else FileKind.OTHER
    )
    return GuestEntry(
        path.name,
        kind,
        status.st_size if kind in {FileKind.FILE, FileKind.LINK} else 0,
        stat.S_IMODE(mode),
        _target(path) or "",
        int(status.st_mtime),
        status.st_uid,
    )
