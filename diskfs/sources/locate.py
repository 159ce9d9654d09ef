"""From what a user typed to a source, and to the files beside it."""

import re
from collections.abc import Sequence
from pathlib import Path

from diskfs.errors import SourceError, SourceNotFound
from diskfs.sources.file import FileSource, open_beside, open_file
from diskfs_formats.driver import DiskImage
from diskfs_formats.errors import ParentUnavailable, UnsafeReference, UnsupportedFeature
from diskfs_formats.text import printable

_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")
_DRIVE = re.compile(r"^[A-Za-z]:")
MAX_NAME = 255
"""Bytes of a file name on every file system in use."""


def open_location(location: str) -> FileSource:
    """Open a path; raises SourceError, or UnsupportedFeature for a URL."""
    if match := _SCHEME.match(location):
        raise UnsupportedFeature(f"{match[0]}... locations are not read yet: only local files and block devices are")
    return open_file(Path(location))


class FolderFiles:
    """The files in the folder of a local image, by bare name only."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self, file_name: str, /) -> FileSource:
        require_bare_name(file_name)
        try:
            return open_beside(self._folder, file_name)
        except SourceNotFound as error:
            raise ParentUnavailable(
                f"{printable(file_name)!r} is needed and is not in {printable(str(self._folder))}"
            ) from error
        except SourceError as error:
            raise UnsafeReference(str(error)) from error

    def open_parent(self, file_names: Sequence[str], format_name: str | None, /) -> DiskImage:  # noqa: ARG002
        wanted = " or ".join(repr(printable(name)) for name in file_names) or "a file that it does not name"
        raise UnsupportedFeature(f"the image is a child of {wanted}; chains of images are not read yet")


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
