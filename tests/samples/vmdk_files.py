"""Folders of VMDK files: writing them, opening them as the command line does, and asking qemu-img about them."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diskfs.cli.map import map_entries
from diskfs.sources.file import open_file
from diskfs.sources.locate import FolderFiles
from diskfs_formats.driver import DiskImage
from diskfs_formats.errors import ImageError, ParentUnavailable
from diskfs_formats.findings import Finding
from diskfs_formats.source import Buffer, MemorySource
from diskfs_formats.vmdk import VmdkDriver

FLAGS = ("depth", "present", "zero", "data")


class CountedSource(MemorySource):
    """Bytes in memory that say how they were read and whether they were closed."""

    def __init__(self, data: bytes, name: str) -> None:
        super().__init__(data, name)
        self.reads = 0
        self.closed = False
        self.is_ready = True

    def read_at(self, offset: int, length: int, /) -> bytes:
        self.reads += 1
        return super().read_at(offset, length)

    def read_if_ready(self, offset: int, length: int, /) -> Buffer | None:
        return super().read_at(offset, length) if self.is_ready else None

    def close(self) -> None:
        self.closed = True


class Beside:
    """RelatedFiles in memory that remember what was opened."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self._files = files
        self.opened: list[CountedSource] = []

    def open(self, file_name: str, /) -> CountedSource:
        if file_name not in self._files:
            raise ParentUnavailable(f"{file_name!r} is not here")
        self.opened.append(CountedSource(self._files[file_name], file_name))
        return self.opened[-1]

    def open_parent(self, file_names: Sequence[str], format_name: str | None, /) -> DiskImage:
        raise ParentUnavailable("there is no parent here")


def written(folder: Path, files: Mapping[str, str | bytes]) -> Path:
    """Write files; return the path of the first."""
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder / next(iter(files))


def opened(path: Path, **options: Any) -> DiskImage:
    """Open a VMDK with the files beside it; `options` are those of FolderFiles."""
    source = open_file(path)
    try:
        return VmdkDriver().open(source, FolderFiles(path.absolute().parent, [source], **options))
    except BaseException:
        source.close()
        raise


def survivor(path: Path) -> tuple[DiskImage | None, str]:
    """Open a VMDK that may be damaged; return it, or what the error says."""
    try:
        return opened(path), ""
    except ImageError as error:
        return None, str(error)


def bytes_or_message(disk: DiskImage, offset: int, length: int) -> tuple[bytes | None, str]:
    """Read a disk that may be damaged; return the bytes, or what the error says."""
    try:
        return disk.read_at(offset, length), ""
    except ImageError as error:
        return None, str(error)


def findings(path: Path) -> list[Finding]:
    """Return what verifying a VMDK finds."""
    source = open_file(path)
    try:
        return list(VmdkDriver().check(source, FolderFiles(path.absolute().parent, [source])))
    finally:
        source.close()


def rules(path: Path) -> list[str]:
    """Return the names of what verifying a VMDK finds."""
    return [finding.rule for finding in findings(path)]


def run(*command: object, cwd: Path) -> str:
    """Run a program, which must succeed."""
    result = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
    return result.stdout


def assert_qemu_agrees(path: Path, content: bytes) -> None:
    """qemu-img finds the disk equal to `content`."""
    raw = path.with_suffix(".expected")
    raw.write_bytes(content)
    run("qemu-img", "compare", "-f", "vmdk", "-F", "raw", path.name, raw.name, cwd=path.parent)
    raw.unlink()


def qemu_map(path: Path) -> list[dict[str, Any]]:
    """Return the map that qemu-img gives."""
    found: list[dict[str, Any]] = json.loads(
        run("qemu-img", "map", "-f", "vmdk", "--output=json", path.name, cwd=path.parent)
    )
    return found


def our_map(disk: DiskImage) -> list[dict[str, Any]]:
    """Return the map with the keys of qemu-img's; runs in two files are two, as it has them."""
    return list(map_entries(disk.extents()))


def runs(entries: list[dict[str, Any]], keys: tuple[str, ...] = FLAGS) -> list[tuple[Any, ...]]:
    """Return start, length and flags of a map, neighbours with equal flags as one."""
    found: list[tuple[Any, ...]] = []
    for entry in entries:
        flags = tuple(entry[key] for key in keys)
        if found and found[-1][2:] == flags:
            found[-1] = (found[-1][0], found[-1][1] + entry["length"], *flags)
        else:
            found.append((entry["start"], entry["length"], *flags))
    return found
