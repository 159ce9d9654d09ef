"""Which source an overlay belongs to: what is compared before anything is written over it, or read through it.

An overlay over other bytes than it was made for is a damaged disk, so every file of every disk counts, its parents and
the pieces of a split image included, and so do the identifiers that formats keep for this purpose.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from diskfs.disks.opening import OpenedDisk, OpenedSource
from diskfs.sources.file import FileSource
from diskfs_formats.driver import DiskImage
from diskfs_formats.mapped import MappedImage
from diskfs_formats.source import ByteSource
from diskfs_formats.text import printable

MAX_FILES = 4096
"""Files of a disk that are looked at: a chain of 16, or the pieces of 2 GiB of a disk of 8 TiB."""

MAX_INDEX = 1 << 32
MAX_DISK_SIZE = 1 << 62
"""What an index can state; the names of a disk's data files are counted by its size."""


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """One version of one file. `inode` and `mtime_ns` are a local file's, `etag` and `modified` a remote object's."""

    name: str
    size: int
    inode: int | None = None
    mtime_ns: int | None = None
    etag: str | None = None
    modified: str | None = None


@dataclass(frozen=True, slots=True)
class DiskIdentity:
    """One disk of the source. `content_ids` are those of the image and its parents, nearest first."""

    index: int
    id: str
    file_name: str
    format: str
    variant: str
    virtual_size: int
    sector_size: int
    content_ids: tuple[str, ...]
    files: tuple[FileIdentity, ...]


@dataclass(frozen=True, slots=True)
class SourceIdentity:
    """A source, all its disks that can be opened, and all their files."""

    container: str | None
    file: FileIdentity
    disks: tuple[DiskIdentity, ...]

    @classmethod
    def of(cls, source: OpenedSource) -> "SourceIdentity":
        """Describe an open source; raises nothing but what its disks raise."""
        file = _file(source.stored)
        assert file is not None
        disks = tuple(_disk(disk, file) for disk in source.disks if disk.opened is not None)
        return cls(source.container, file, disks)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "SourceIdentity":
        """Return what `as_json` has stored; raises KeyError, TypeError or ValueError for anything else."""
        disks = tuple(
            DiskIdentity(
                **{
                    **disk,
                    "content_ids": tuple(str(item) for item in disk["content_ids"]),
                    "files": tuple(FileIdentity(**file) for file in disk["files"]),
                }
            )
            for disk in stored["disks"]
        )
        if any(not _within(disk.index, MAX_INDEX) or not _within(disk.virtual_size, MAX_DISK_SIZE) for disk in disks):
            raise ValueError("a disk's number or size is none")
        return cls(stored["container"], FileIdentity(**stored["file"]), disks)

    def as_json(self) -> dict[str, Any]:
        """Return what is stored."""
        return asdict(self)

    def difference(self, other: "SourceIdentity") -> str | None:
        """Say in a few words how another source differs from this one; None if it does not."""
        if self.container != other.container:
            return f"it is {other.container or 'a single image'}, expected {self.container or 'a single image'}"
        if text := _difference_of_files(self.file, other.file):
            return text
        if [disk.index for disk in self.disks] != [disk.index for disk in other.disks]:
            return (
                f"the disks that can be opened are {_numbers(other.disks)}, expected {_numbers(self.disks)}; "
                "is a parent missing?"
            )
        for mine, its in zip(self.disks, other.disks, strict=True):
            where = f"disk {mine.index}: " if self.container else ""
            names = ("id", "file_name") if self.container else ()
            for word in ("format", "variant", "virtual_size", "sector_size", *names, "content_ids"):
                if getattr(mine, word) != getattr(its, word):
                    found, expected = _shown(getattr(its, word)), _shown(getattr(mine, word))
                    return f"{where}its {word.replace('_', ' ')} is {found}, expected {expected}"
            if len(mine.files) != len(its.files):
                return f"{where}it has {len(its.files)} files, expected {len(mine.files)}"
            for one, two in zip(mine.files, its.files, strict=True):
                if text := _difference_of_files(one, two):
                    return f"{where}{printable(two.name)}: {text}"
        return None


def _within(number: object, limit: int) -> bool:
    return type(number) is int and 0 <= number < limit


def _difference_of_files(one: FileIdentity, two: FileIdentity) -> str | None:
    # The name is for messages: a file may be reached by many.
    words = {"size": "size", "inode": "inode number", "mtime_ns": "time of modification", "etag": "ETag"}
    for attribute, word in (*words.items(), ("modified", "time of modification")):
        if getattr(one, attribute) != getattr(two, attribute):
            return f"its {word} is {_shown(getattr(two, attribute))}, expected {_shown(getattr(one, attribute))}"
    return None


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(printable(str(item)) for item in value) or "none"
    return printable(str(value)) if value is not None and value != "" else "none"


def _numbers(disks: tuple[DiskIdentity, ...]) -> str:
    return ", ".join(str(disk.index) for disk in disks) or "none"


def _files(source: ByteSource) -> Iterator[FileIdentity]:
    """Yield the files or objects that a source is made of."""
    file = _file(source)
    if file is not None:
        yield file
    for part in getattr(source, "below", ()):
        yield from _files(part)


def _file(source: ByteSource) -> FileIdentity | None:
    """Return the identity of a file or object; None for a source that is part of another."""
    if isinstance(source, FileSource):
        status = source.status
        if source.device_sector_size is not None:
            # A device's own times change with every write, to it or through it, and its number with every boot.
            return FileIdentity(source.path.name, source.size)
        return FileIdentity(source.path.name, source.size, status.st_ino, status.st_mtime_ns)
    version = getattr(source, "version", None)
    if version is not None:
        return FileIdentity(source.name, source.size, etag=version.etag, modified=version.modified)
    if hasattr(source, "open_beside"):
        return FileIdentity(source.name, source.size)
    return None


def _disk(disk: OpenedDisk, main: FileIdentity) -> DiskIdentity:
    info = disk.image.info
    files: dict[FileIdentity, None] = {}
    for image in _chain(disk.image):
        for source in image.sources if isinstance(image, MappedImage) else ():
            for file in _files(source):
                if file != main and len(files) < MAX_FILES:
                    files[file] = None
    return DiskIdentity(
        disk.index,
        disk.id,
        disk.file_name,
        disk.driver.name if disk.driver else info.format,
        info.variant,
        info.virtual_size,
        info.sector_size,
        tuple(text for image in _chain(disk.image) if (text := _content_id(image))),
        tuple(files),
    )


def _chain(image: DiskImage) -> Iterator[DiskImage]:
    link: DiskImage | None = image
    while link is not None:
        yield link
        link = link.parent if isinstance(link, MappedImage) else None


def _content_id(image: DiskImage) -> str | None:
    """Return the identifier that the format keeps of its content, by the format's word for it."""
    cid = getattr(image, "cid", None)
    if cid is not None:
        return f"CID {cid:08x}"
    guid = getattr(image, "data_write_guid", None)
    if guid is not None:
        return f"DataWriteGuid {guid}"
    footer = getattr(image, "footer", None)
    if footer is not None:
        return f"unique id {footer.unique_id}"
    header = getattr(image, "header", None)
    uuid = getattr(header, "uuid_modify", None)
    return f"uuidModify {uuid}" if uuid is not None else None
