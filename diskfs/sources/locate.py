"""From what a user typed to a source, and to the files beside it."""

import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from diskfs.errors import SourceNotFound
from diskfs.sources.file import FileSource, open_beside, open_file
from diskfs.sources.locations import SCHEME, RemoteOptions, full, is_url
from diskfs_formats.driver import AbsentParent, DiskImage, Match, ProbeWindow
from diskfs_formats.errors import CorruptImage, ParentUnavailable, UnsafeReference, UnsupportedFeature
from diskfs_formats.registry import detect, driver_named
from diskfs_formats.text import printable

if TYPE_CHECKING:
    from diskfs.sources.remote_source import RemoteSource

LocatedSource: TypeAlias = "FileSource | RemoteSource"
"""A source that lies somewhere, in a folder or beside other objects."""

_DRIVE = re.compile(r"^[A-Za-z]:")
_REMOTE = frozenset({"s3", "http", "https"})
MAX_CHAIN = 16
"""Files of a chain, as many as VMware and Hyper-V are known to make, and then some."""
MAX_NAME = 255
"""Bytes of a file name on every file system in use."""


def open_location(location: str, options: RemoteOptions | None = None) -> LocatedSource:
    """Open a path or URL; raises SourceError, or UnsupportedFeature for a scheme that is not read."""
    place = full(location)
    match = SCHEME.match(place)
    if match is None:
        return open_file(Path(place))
    if match[1].lower() not in _REMOTE:
        raise UnsupportedFeature(
            f"{printable(match[1])}://... locations are not read: only paths, s3://, http:// and https:// are"
        )
    # Loaded here: clients for HTTP and S3 are slow to load, and a path needs none of it.
    from diskfs.sources.remote_source import open_remote  # noqa: PLC0415

    return open_remote(place, options or RemoteOptions())


def files_beside(
    source: LocatedSource,
    chain: Sequence[LocatedSource] = (),
    parents: Sequence[str | Path] = (),
    *,
    allow_missing: bool = False,
    options: RemoteOptions | None = None,
) -> "BesideFiles":
    """Return the files in the folder, or under the key prefix, of an open source."""
    if isinstance(source, FileSource):
        folder = source.path.absolute().parent
        return FolderFiles(folder, chain, parents, allow_missing=allow_missing, options=options)
    return RemoteFiles(source, chain, parents, allow_missing=allow_missing, options=options)


def stop_fetching() -> None:
    """Wake whoever waits for a remote source, with an error: the process goes away."""
    if fetching := sys.modules.get("diskfs.sources.fetching"):
        fetching.FETCHERS.stop()


class BesideFiles(ABC):
    """The files beside an image, by bare name only.

    `parents` are the files that the user named for the parents up the chain, nearest first; `chain` are the files
    that lead here, the image itself last. With `allow_missing` a parent that is not there reads as zero.
    """

    def __init__(
        self,
        chain: Sequence[LocatedSource] = (),
        parents: Sequence[str | Path] = (),
        *,
        allow_missing: bool = False,
        options: RemoteOptions | None = None,
    ) -> None:
        self._chain = tuple(chain)
        self._parents = tuple(parents)
        self._allow_missing = allow_missing
        self._options = options

    @property
    @abstractmethod
    def place(self) -> str:
        """Where the files lie, for messages."""

    @abstractmethod
    def _open_beside(self, file_name: str) -> LocatedSource:
        """Open a file by its bare name; raises SourceNotFound if it is not there."""

    def open(self, file_name: str, /) -> LocatedSource:
        require_bare_name(file_name)
        try:
            return self._open_beside(file_name)
        except SourceNotFound as error:
            raise ParentUnavailable(f"{printable(file_name)!r} is needed and is not in {self.place}") from error

    def open_parent(self, file_names: Sequence[str], format_name: str | None, /) -> DiskImage:
        try:
            source = self._parent_source(file_names)
        except ParentUnavailable:
            if self._allow_missing:
                return AbsentParent()
            raise
        try:
            if len(self._chain) >= MAX_CHAIN:
                raise CorruptImage(f"{source.name}: the chain of parents is over {MAX_CHAIN} files long")
            if any(_is_same(source, child) for child in self._chain):
                raise CorruptImage(f"{source.name}: the chain of parents comes back to this file")
            window = ProbeWindow.of(source)
            driver = driver_named(format_name or detect(window, source.name), source.name)
            if format_name is not None and driver.probe(window) is Match.NO:
                raise ParentUnavailable(f"{source.name}: the parent is not a {format_name} image, as its child says")
            chain = (*self._chain, source)
            related = files_beside(
                source, chain, self._parents[1:], allow_missing=self._allow_missing, options=self._options
            )
            return driver.open(source, related)
        except BaseException:
            source.close()
            raise

    def _parent_source(self, file_names: Sequence[str]) -> LocatedSource:
        if self._parents:
            return open_location(_as_location(self._parents[0]), self._options)
        for name in file_names:
            require_bare_name(name)
        for name in file_names:
            try:
                return self._open_beside(name)
            except SourceNotFound:
                continue
        child = self._chain[-1].name if self._chain else "the image"
        wanted = " or ".join(repr(printable(name)) for name in file_names)
        if not wanted:
            raise ParentUnavailable(
                f"{child}: it needs its parent and does not say which file that is; use --parent FILE"
            )
        raise ParentUnavailable(
            f"{child}: its parent {wanted} is not in {self.place}; put it there or name it with "
            "--parent FILE, or read zeroes in its place with --allow-missing-parent"
        )


class FolderFiles(BesideFiles):
    """The files in the folder of a local image."""

    def __init__(
        self,
        folder: Path,
        chain: Sequence[LocatedSource] = (),
        parents: Sequence[str | Path] = (),
        *,
        allow_missing: bool = False,
        options: RemoteOptions | None = None,
    ) -> None:
        super().__init__(chain, parents, allow_missing=allow_missing, options=options)
        self._folder = folder

    @property
    def place(self) -> str:
        return printable(str(self._folder))

    def _open_beside(self, file_name: str) -> FileSource:
        return open_beside(self._folder, file_name)


class RemoteFiles(BesideFiles):
    """The objects under the prefix, or in the folder of the URL, of a remote image."""

    def __init__(
        self,
        image: "RemoteSource",
        chain: Sequence[LocatedSource] = (),
        parents: Sequence[str | Path] = (),
        *,
        allow_missing: bool = False,
        options: RemoteOptions | None = None,
    ) -> None:
        super().__init__(chain, parents, allow_missing=allow_missing, options=options)
        self._image = image

    @property
    def place(self) -> str:
        return self._image.name.rpartition("/")[0]

    def _open_beside(self, file_name: str) -> "RemoteSource":
        return self._image.open_beside(file_name)


def _is_same(one: LocatedSource, other: LocatedSource) -> bool:
    if isinstance(one, FileSource):
        return isinstance(other, FileSource) and one.is_same_file(other)
    return not isinstance(other, FileSource) and one.key == other.key


def _as_location(parent: str | Path) -> str:
    return parent if isinstance(parent, str) and is_url(parent) else str(parent)


def require_bare_name(file_name: str) -> None:
    """Raise UnsafeReference unless `file_name` is one path component on every system."""
    problem = (
        "it is empty"
        if not file_name
        else "it leads to another folder"
        if file_name in {".", ".."} or "/" in file_name or "\\" in file_name or _DRIVE.match(file_name)
        else "it holds a control character"
        if any(ord(character) < 32 for character in file_name)
        else f"it is over {MAX_NAME} bytes long"
        if len(file_name.encode("utf-8", "surrogateescape")) > MAX_NAME
        else None
    )
    if problem:
        raise UnsafeReference(
            f"the image names the file {printable(file_name)!r}: {problem}; only a file beside the image may be opened"
        )
