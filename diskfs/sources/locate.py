"""From what a user typed to a source, and to the files beside it."""

import re
from collections.abc import Sequence
from pathlib import Path

from diskfs.errors import SourceNotFound
from diskfs.sources.file import FileSource, open_beside, open_file
from diskfs_formats.driver import AbsentParent, DiskImage, Match, ProbeWindow
from diskfs_formats.errors import CorruptImage, ParentUnavailable, UnsafeReference, UnsupportedFeature
from diskfs_formats.registry import detect, driver_named
from diskfs_formats.text import printable

_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")
_DRIVE = re.compile(r"^[A-Za-z]:")
MAX_CHAIN = 16
"""Files of a chain, as many as VMware and Hyper-V are known to make, and then some."""
MAX_NAME = 255
"""Bytes of a file name on every file system in use."""


def open_location(location: str) -> FileSource:
    """Open a path; raises SourceError, or UnsupportedFeature for a URL."""
    if match := _SCHEME.match(location):
        raise UnsupportedFeature(f"{match[0]}... locations are not read yet: only local files and block devices are")
    return open_file(Path(location))


class FolderFiles:
    """The files in the folder of a local image, by bare name only.

    `parents` are the files that the user named for the parents up the chain, nearest first; `chain` are the files
    that lead here, the image itself last. With `allow_missing` a parent that is not there reads as zero.
    """

    def __init__(
        self,
        folder: Path,
        chain: Sequence[FileSource] = (),
        parents: Sequence[Path] = (),
        *,
        allow_missing: bool = False,
    ) -> None:
        self._folder = folder
        self._chain = tuple(chain)
        self._parents = tuple(parents)
        self._allow_missing = allow_missing

    def open(self, file_name: str, /) -> FileSource:
        require_bare_name(file_name)
        try:
            return open_beside(self._folder, file_name)
        except SourceNotFound as error:
            raise ParentUnavailable(
                f"{printable(file_name)!r} is needed and is not in {printable(str(self._folder))}"
            ) from error

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
            if any(source.is_same_file(child) for child in self._chain):
                raise CorruptImage(f"{source.name}: the chain of parents comes back to this file")
            window = ProbeWindow.of(source)
            driver = driver_named(format_name or detect(window, source.name), source.name)
            if format_name is not None and driver.probe(window) is Match.NO:
                raise ParentUnavailable(f"{source.name}: the parent is not a {format_name} image, as its child says")
            folder = source.path.absolute().parent
            related = FolderFiles(folder, (*self._chain, source), self._parents[1:], allow_missing=self._allow_missing)
            return driver.open(source, related)
        except BaseException:
            source.close()
            raise

    def _parent_source(self, file_names: Sequence[str]) -> FileSource:
        if self._parents:
            return open_file(self._parents[0])
        for name in file_names:
            require_bare_name(name)
        for name in file_names:
            try:
                return open_beside(self._folder, name)
            except SourceNotFound:
                continue
        child = self._chain[-1].name if self._chain else "the image"
        wanted = " or ".join(repr(printable(name)) for name in file_names)
        if not wanted:
            raise ParentUnavailable(
                f"{child}: it needs its parent and does not say which file that is; use --parent FILE"
            )
        raise ParentUnavailable(
            f"{child}: its parent {wanted} is not in {printable(str(self._folder))}; put it there or name it with "
            "--parent FILE, or read zeroes in its place with --allow-missing-parent"
        )


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
