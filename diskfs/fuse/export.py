"""`export/`: each disk in other formats, laid out over its map and copied nowhere.

A layout is made when somebody first looks at one of its files: it needs the modules of the format, and the size of a
dynamic format needs the whole map. A mount that nobody asks for an export pays for none.
"""

import threading
from collections.abc import Iterator

from diskfs.fuse.sizing import Sizing
from diskfs.fuse.tree import Directory, File
from diskfs_formats.driver import DiskImage, ImageInfo
from diskfs_formats.extents import Extent
from diskfs_formats.registry import writer_entry, writer_for
from diskfs_formats.source import Buffer, read_if_ready
from diskfs_formats.writer import LayoutWriter, WriteOptions

_EXPORTS = (
    # format, variant, the layout's files, the main one first
    ("vhd", "fixed", ("{}.vhd",)),
    ("vhd", "dynamic", ("{}-dynamic.vhd",)),
    ("vhdx", "dynamic", ("{}.vhdx",)),
    ("vmdk", "monolithicFlat", ("{}.vmdk", "{}-flat.vmdk")),
)


class Layout:
    """The files that a format makes of a disk, laid out on first use. Safe to share between threads."""

    def __init__(self, disk: DiskImage, format_name: str, variant: str, file_name: str) -> None:
        self._disk = disk
        self._format_name = format_name
        self._variant = variant
        self._file_name = file_name
        self._files: dict[str, DiskImage] | None = None
        self._lock = threading.Lock()

    @property
    def is_ready(self) -> bool:
        """Whether the files are laid out."""
        return self._files is not None

    def file(self, name: str) -> DiskImage:
        """Return one of the files; the first call walks the disk's map. Raises what that raises."""
        with self._lock:
            if self._files is None:
                writer, variant = writer_for(self._format_name, self._variant)
                assert isinstance(writer, LayoutWriter)
                # Reproducible, so that the file is the same in every mount and the one that `convert` writes.
                options = WriteOptions(variant=variant, file_name=self._file_name, reproducible=True)
                self._files = {file.name: file.content for file in writer.layout(self._disk, options)}
            return self._files[name]


class ExportedFile:
    """One file of a layout, as a source with a map. Thread-safe; closing it leaves the disk open."""

    def __init__(self, layout: Layout, name: str) -> None:
        self._layout = layout
        self._name = name

    @property
    def name(self) -> str:
        return self._name

    @property
    def size(self) -> int:
        return self._content.size

    @property
    def info(self) -> ImageInfo:
        return self._content.info

    def extents(self, offset: int = 0, length: int | None = None, /) -> Iterator[Extent]:
        return self._content.extents(offset, length)

    def read_at(self, offset: int, length: int, /) -> bytes:
        return self._content.read_at(offset, length)

    def read_if_ready(self, offset: int, length: int, /) -> Buffer | None:
        return read_if_ready(self._content, offset, length) if self._layout.is_ready else None

    def close(self) -> None:
        pass

    @property
    def _content(self) -> DiskImage:
        return self._layout.file(self._name)


def export_folder(disks: dict[str, DiskImage], sizing: Sizing | None) -> Directory:
    """Return the folder for disks by their names; a disk that is too large for a format lacks that file.

    Without `sizing` the files count as wholly allocated.
    """
    files: list[File] = []
    for disk_name, disk in disks.items():
        for format_name, variant, patterns in _EXPORTS:
            if not writer_entry(format_name, variant).fits(disk.size):
                continue
            names = [pattern.format(disk_name) for pattern in patterns]
            layout = Layout(disk, format_name, variant, names[0])
            files.extend(_file(ExportedFile(layout, name), sizing) for name in names)
    return Directory("export", tuple(files))


def _file(content: ExportedFile, sizing: Sizing | None) -> File:
    allocated = None if sizing is None else lambda: sizing.allocated(content)
    return File(content.name, content, allocated, deferred=True)
