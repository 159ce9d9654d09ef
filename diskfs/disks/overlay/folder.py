"""The folder of an overlay: one description, and for each disk of the source a data file and an index.

`overlay.json` is what makes a folder an overlay: it appears by renaming once all else is there and synced. Whoever has
`lock` locked is the one writer; the lock goes with its process, however that ends.
"""

import contextlib
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from diskfs.disks.opening import OpenedSource
from diskfs.disks.overlay.block_map import PAGES_KEPT, BlockMap
from diskfs.disks.overlay.data_file import SEGMENT_SIZE, DataFile, segment_sizes
from diskfs.disks.overlay.description import (
    MAX_SIZE,
    OverlayDescription,
    SourceOptions,
    parse_description,
    stored_location,
)
from diskfs.disks.overlay.disk import NO_ROOM, OverlayDisk
from diskfs.disks.overlay.identity import SourceIdentity
from diskfs.disks.overlay.layout import BLOCK_SIZE, HEADER_SIZE, PAGES_OFFSET, IndexHeader, parse_header
from diskfs.disks.overlay.lock import FolderLock, lock_folder
from diskfs.disks.overlay.names import DESCRIPTION, LOCK, NEW_DESCRIPTION, REMOVED, data_name, index_name, ours
from diskfs.disks.overlay.storage import LocalStorage, Storage, StoredFile
from diskfs.errors import (
    DamagedOverlay,
    NotAnOverlay,
    OtherSource,
    OutOfSpace,
    OverlayError,
    OverlayWriteError,
)
from diskfs_formats.driver import DiskImage
from diskfs_formats.errors import DiskfsError
from diskfs_formats.findings import Finding
from diskfs_formats.text import printable


class OverlayFolder:
    """An open overlay, locked until it is closed. Its disks may be shared between threads."""

    def __init__(
        self, storage: Storage, name: str, lock: FolderLock, description: OverlayDescription, source: OpenedSource
    ) -> None:
        """Take over a locked folder; use `open`."""
        self._storage = storage
        self._name = name
        self._lock = lock
        self._source = source
        self._disks: dict[int, OverlayDisk] = {}
        self.description = description

    @classmethod
    def open(
        cls,
        folder: Path,
        source: OpenedSource,
        *,
        create: bool = True,
        options: SourceOptions | None = None,
        block_size: int = BLOCK_SIZE,
        storage: Storage | None = None,
    ) -> Self:
        """Open the overlay of `source` in `folder`, or make one where none is, which `create` permits.

        `options` is what is stored of how the source was opened; it and `block_size` matter for a new overlay alone.
        The source must stay open, and stays so when this is closed. Raises OverlayInUse, OtherSource, NotAnOverlay,
        NewerOverlay, DamagedOverlay, OverlayWriteError, or OutOfSpace.
        """
        name = printable(str(folder))
        storage = storage or LocalStorage(folder)
        identity = SourceIdentity.of(source)
        with ExitStack() as undo, _reported(name):
            if create:
                storage.make_folder()
            names = _names(storage, name)
            if DESCRIPTION not in names:
                if not create:
                    raise NotAnOverlay(f"{name}: there is no {DESCRIPTION}: it is no overlay")
                _require_unfinished(storage, names, name)
            lock = lock_folder(storage, name)
            undo.callback(lock.release)
            if DESCRIPTION in storage.names():
                description = _read_description(storage, name)
                _require_same(description, identity, name, source)
                # Whoever made it may have been stopped before its names were sure to stay.
                storage.sync()
            else:
                location = stored_location(source.location)
                options = options or SourceOptions()
                description = OverlayDescription(uuid.uuid4(), location, identity, options, block_size)
                _create(storage, description)
            opened = cls(storage, name, lock, description, source)
            # The lock's text does not say `closed` then: what was not opened whole is not known to be synced.
            undo.callback(opened._close_disks)
            for disk in identity.disks:
                header = IndexHeader(description.id, disk.index, description.block_size, disk.virtual_size)
                opened._disks[disk.index] = open_disk(
                    storage, header, name, source.disk(disk.index).image, was_closed=lock.was_closed
                )
            undo.pop_all()
            return opened

    @classmethod
    def inspect(cls, folder: Path, *, storage: Storage | None = None, require_own: bool = False) -> OverlayDescription:
        """Return what the folder says of itself; needs neither the source nor the lock, and changes nothing.

        With `require_own`, OverlayError is raised if others may have written it: it names the files that are opened,
        and where credentials are sent.
        """
        name = printable(str(folder))
        storage = storage or LocalStorage(folder)
        with _reported(name):
            if DESCRIPTION not in _names(storage, name):
                raise NotAnOverlay(f"{name}: there is no {DESCRIPTION}: it is no overlay")
            return _read_description(storage, name, require_own=require_own)

    @staticmethod
    def check(folder: Path, *, storage: Storage | None = None) -> Iterator[Finding]:
        """Examine every structure of an overlay that nobody has open, and change nothing; raises as `inspect` does.

        Raises OverlayInUse as well. Damage is yielded, and ends nothing.
        """
        from diskfs.disks.overlay.check import check_disk  # noqa: PLC0415 - for one command alone

        name = printable(str(folder))
        storage = storage or LocalStorage(folder)
        with _reported(name):
            if DESCRIPTION not in _names(storage, name):
                raise NotAnOverlay(f"{name}: there is no {DESCRIPTION}: it is no overlay")
            lock = lock_folder(storage, name)
            try:
                description = _read_description(storage, name)
                for disk in description.identity.disks:
                    header = IndexHeader(description.id, disk.index, description.block_size, disk.virtual_size)
                    yield from check_disk(storage, header, name)
            finally:
                # It has written nothing, so the folder is as it was.
                lock.release(closed=lock.was_closed)

    @staticmethod
    def remove(folder: Path, *, storage: Storage | None = None) -> None:
        """Remove an overlay that nobody has open, damaged or not, and the folder if nothing else is in it.

        Raises OverlayInUse, NotAnOverlay, NewerOverlay, or OverlayError. After an interruption the folder is an overlay
        with all its changes, or what is left of it is removed by the next `open` or `remove`.
        """
        name = printable(str(folder))
        storage = storage or LocalStorage(folder)
        with _reported(name):
            names = _names(storage, name)
            if DESCRIPTION not in names and ours(names) != names:
                raise NotAnOverlay(f"{name}: there is no {DESCRIPTION}: it is no overlay")
            lock = lock_folder(storage, name)
            try:
                if DESCRIPTION in storage.names():
                    with contextlib.suppress(DamagedOverlay):
                        _read_description(storage, name)
                    storage.rename(DESCRIPTION, REMOVED)
                    storage.sync()
                _remove_files(storage)
                storage.unlink(LOCK)
                storage.sync()
                if not storage.names():
                    storage.remove_folder()
            finally:
                lock.release()

    @property
    def name(self) -> str:
        """The folder, for messages."""
        return self._name

    def disk(self, index: int) -> OverlayDisk:
        """Return one disk; raises what opening it in the source has raised, or OtherSource for one added since."""
        disk = self._disks.get(index)
        if disk is None:
            _ = self._source.disk(index).image
            raise OtherSource(f"{self._name}: the overlay has no disk {index}")
        return disk

    def flush(self) -> None:
        """Flush every disk."""
        for disk in self._disks.values():
            disk.flush()

    def close(self) -> None:
        """Flush every disk, and release the files and the lock whatever comes of it; raises what `flush` raises."""
        try:
            self._close_disks()
        finally:
            self._lock.release(closed=all(disk.is_synced for disk in self._disks.values()))

    def _close_disks(self) -> None:
        with ExitStack() as closing:
            for disk in self._disks.values():
                closing.callback(disk.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_disk(
    storage: Storage,
    header: IndexHeader,
    name: str,
    base: DiskImage,
    *,
    pages_kept: int = PAGES_KEPT,
    was_closed: bool = False,
) -> OverlayDisk:
    """Open one disk of a folder that is locked, and that the last one to use it closed or not.

    Raises DamagedOverlay or OSError.
    """
    with ExitStack() as undo:
        index, files = open_files(storage, header, name)
        for file in (*files, index):
            undo.callback(file.close)
        for file in (*files, index):
            # A killed process has left what it wrote in the page cache; a failed sync has left there what the disk has
            # not. So all that is read from now on is on the disk, and a flush has only what is new to sync. Whoever
            # closed the folder has synced it; reading it all again costs more than a commit's whole work.
            file.sync()
            if not was_closed:
                file.forget_clean_pages()
        block_map = BlockMap(index, header, f"{name}/{index_name(header.disk)}", pages_kept)
        block_map.require_sound()
        data = DataFile(files, f"{name}/{data_name(header.disk, 0)}", header.virtual_size, SEGMENT_SIZE)
        undo.pop_all()
        return OverlayDisk(base, data, block_map, header.block_size)


def create_files(storage: Storage, header: IndexHeader) -> None:
    """Make the files of one disk, synced, with nothing in them; raises OSError."""
    for number, size in enumerate(segment_sizes(header.virtual_size, SEGMENT_SIZE)):
        _make(storage, data_name(header.disk, number), size)
    _make(storage, index_name(header.disk), header.file_size, header.pack())


def open_files(
    storage: Storage, header: IndexHeader, name: str, *, write: bool = True
) -> tuple[StoredFile, list[StoredFile]]:
    """Open the index and the data files of a disk; raises DamagedOverlay for one that is missing, cut or foreign."""
    with ExitStack() as undo:
        index = _opened(storage, index_name(header.disk), name, header.file_size, write=write)
        undo.callback(index.close)
        place = f"{name}/{index_name(header.disk)}"
        found = parse_header(index.read_at(0, HEADER_SIZE), place)
        if found != header:
            raise DamagedOverlay(
                f"{place}: it is the index of disk {found.disk} of {found.virtual_size} bytes in blocks of "
                f"{found.block_size} of overlay {found.overlay_id}, expected disk {header.disk} of "
                f"{header.virtual_size} bytes in blocks of {header.block_size} of overlay {header.overlay_id}"
            )
        files = []
        for number, size in enumerate(segment_sizes(header.virtual_size, SEGMENT_SIZE)):
            file = _opened(storage, data_name(header.disk, number), name, size, write=write)
            undo.callback(file.close)
            files.append(file)
        undo.pop_all()
        return index, files


def _opened(storage: Storage, file_name: str, name: str, size: int, *, write: bool) -> StoredFile:
    try:
        file = storage.open(file_name, write=write)
    except FileNotFoundError as error:
        raise DamagedOverlay(f"{name}/{file_name}: it is missing, and the overlay's description names it") from error
    if (found := file.size()) != size:
        file.close()
        raise DamagedOverlay(f"{name}/{file_name}: it has {found} bytes, expected {size}: it was cut or replaced")
    return file


def _create(storage: Storage, description: OverlayDescription) -> None:
    _remove_files(storage)
    for disk in description.identity.disks:
        header = IndexHeader(description.id, disk.index, description.block_size, disk.virtual_size)
        create_files(storage, header)
    text = description.pack()
    _make(storage, NEW_DESCRIPTION, len(text), text)
    storage.sync()
    storage.rename(NEW_DESCRIPTION, DESCRIPTION)
    storage.sync()


def _remove_files(storage: Storage) -> None:
    """Remove all but the lock; what says that they may go is the last to go."""
    names = ours(storage.names())
    for file in names:
        if file not in (REMOVED, LOCK):
            storage.unlink(file)
    if REMOVED in names:
        storage.sync()
        storage.unlink(REMOVED)


def _make(storage: Storage, name: str, size: int, content: bytes = b"") -> None:
    file = storage.open(name, create=True)
    try:
        file.truncate(size)
        if content:
            file.write_at(0, content)
        file.sync()
    finally:
        file.close()


def _read_description(storage: Storage, name: str, *, require_own: bool = False) -> OverlayDescription:
    file = storage.open(DESCRIPTION, write=False)
    try:
        if require_own:
            _require_own(storage, file, name)
        return parse_description(file.read_at(0, MAX_SIZE + 1), f"{name}/{DESCRIPTION}")
    finally:
        file.close()


def _require_own(storage: Storage, description: StoredFile, name: str) -> None:
    """Raise OverlayError if an open description was written, or may have been, by anybody but this user, root, and the
    user who called sudo, or lies in a folder of somebody else.
    """
    own = {os.geteuid(), 0}
    if os.geteuid() == 0 and os.environ.get("SUDO_UID", "").isdecimal():
        own.add(int(os.environ["SUDO_UID"]))
    owner, mode = description.owner()
    for place, whose in ((name, storage.owner()), (f"{name}/{DESCRIPTION}", owner)):
        if whose not in own:
            raise OverlayError(
                f"{place}: it belongs to user {whose}, and decides which files are opened; if you trust it, make it "
                "yours (chown -R), or work as that user"
            )
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise OverlayError(
            f"{name}/{DESCRIPTION}: others may write it, and it decides which files are opened; if you trust it, make "
            "it yours alone (chmod go-w)"
        )


def _require_same(description: OverlayDescription, identity: SourceIdentity, name: str, source: OpenedSource) -> None:
    difference = description.identity.difference(identity)
    if difference:
        raise OtherSource(
            f"{name}: the overlay was made for {printable(description.location)}, and {printable(source.location)} is "
            f"another source or was changed since: {difference}; use the source as it was, or another folder"
        )


def _names(storage: Storage, name: str) -> list[str]:
    try:
        return storage.names()
    except FileNotFoundError as error:
        raise NotAnOverlay(f"{name}: there is no such folder") from error
    except NotADirectoryError as error:
        raise NotAnOverlay(f"{name}: it is no folder") from error


def _require_unfinished(storage: Storage, names: list[str], name: str) -> None:
    """Raise unless the folder is empty, or what an interrupted creation has left."""
    foreign = set(names).difference(ours(names))
    if foreign:
        raise NotAnOverlay(
            f"{name}: it holds {printable(min(foreign))!r} and is no overlay; name an empty folder or one that does "
            "not exist yet"
        )
    for file_name in names if REMOVED not in names else ():
        if not file_name.endswith(".index"):
            continue
        file = storage.open(file_name, write=False)
        try:
            # A new index is its header alone, so whatever else is in it was put there by an overlay in use.
            if any(_has_content(file, *found) for found in file.data_ranges(PAGES_OFFSET, file.size())):
                raise DamagedOverlay(
                    f"{name}: {DESCRIPTION} is missing, and {file_name} describes changes of a disk; put it back, or "
                    "use another folder"
                )
        finally:
            file.close()


def _has_content(file: StoredFile, start: int, end: int) -> bool:
    return any(any(file.read_at(offset, min(1 << 20, end - offset))) for offset in range(start, end, 1 << 20))


@contextlib.contextmanager
def _reported(name: str) -> Iterator[None]:
    """Turn what the system says into errors of the overlay."""
    try:
        yield
    except DiskfsError:
        raise
    except FileExistsError as error:
        raise NotAnOverlay(f"{name}: it is no folder") from error
    except OSError as error:
        if error.errno in NO_ROOM:
            raise OutOfSpace(f"{name}: {error.strerror}; free some room there") from error
        if isinstance(error, FileNotFoundError | PermissionError | NotADirectoryError):
            raise OverlayError(f"{name}: it cannot be used: {error.strerror}") from error
        raise OverlayWriteError(f"{name}: using the overlay failed: {error.strerror or error}") from error
