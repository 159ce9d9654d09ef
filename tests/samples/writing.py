"""Disks to write, of every kind that matters to a layout, and writing a laid-out file by its map alone.

Each disk comes with a raw file of the same bytes, which another program or plain system calls made.
"""

import os
import random
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from diskfs.sources.file import open_file
from diskfs_formats.driver import DiskImage
from diskfs_formats.extents import ExtentKind
from diskfs_formats.registry import open_image, writer_for
from diskfs_formats.source import MemorySource
from diskfs_formats.writer import LaidOutFile, LayoutWriter, WriteOptions
from tests.samples.vhdx_builder import MIB, VhdxBuilder, pattern

PIECE = 1 << 20


@dataclass(frozen=True)
class Written:
    """A disk that is to be written, and its bytes as a raw file."""

    disk: DiskImage
    raw: Path


def _raw(size: int, *offsets: int, length: int = 4096) -> Callable[[Path], Written]:
    """A sparse raw file with data at some offsets, cut at its end."""

    def make(folder: Path) -> Written:
        path = folder / "disk.raw"
        chance = random.Random(size)
        with path.open("wb") as file:
            for offset in offsets:
                file.seek(offset)
                file.write(chance.randbytes(min(length, size - offset)))
            file.truncate(size)
        return Written(open_image(open_file(path), format_name="raw"), path)

    return make


def _qemu(size: int, format_name: str, options: str, commands: list[str]) -> Callable[[Path], Written]:
    """An image that qemu-io wrote, and what qemu-img reads from it."""

    def make(folder: Path) -> Written:
        path, raw = folder / "disk.image", folder / "disk.raw"
        subprocess.run(["qemu-img", "create", "-q", "-f", format_name, "-o", options, path, str(size)], check=True)
        words = [word for command in commands for word in ("-c", command)]
        subprocess.run(["qemu-io", "-f", format_name, *words, path], check=True, capture_output=True)
        subprocess.run(["qemu-img", "convert", "-f", format_name, "-O", "raw", path, raw], check=True)
        return Written(open_image(open_file(path)), raw)

    return make


def _shuffled() -> list[str]:
    """Units in an order that no sequential writer has, so that the extents of the map jump about in the file."""
    blocks = [block for block in range(14) if block % 4 != 2]
    random.Random(3).shuffle(blocks)
    return [f"write -P {block + 1} {block * MIB + block % 3 * 512} {MIB - block * 512}" for block in blocks]


def _compressed(folder: Path) -> Written:
    raw, image = folder / "disk.raw", folder / "disk.image"
    content = bytearray(5 * MIB + 77 * 512)
    for offset in (0, MIB - 512, 2 * MIB + 65536, 4 * MIB, len(content) - 512):
        content[offset : offset + 70_000] = (bytes(range(256)) * 274)[: min(70_000, len(content) - offset)]
    raw.write_bytes(content)
    subprocess.run(
        ["qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", raw, image], check=True
    )
    return Written(open_image(open_file(image)), raw)


def _sectors_of_4096(folder: Path) -> Written:
    builder = VhdxBuilder(9 * MIB + 4096, sector_size=4096)
    raw = folder / "disk.raw"
    with raw.open("wb") as file:
        for block in (7, 0, 9, 3):
            data = pattern(block)
            builder.put(block, data)
            file.seek(block * MIB)
            file.write(data)
        file.truncate(builder.virtual_size)
    return Written(open_image(MemorySource(builder.build(), "disk.vhdx")), raw)


DISKS: dict[str, Callable[[Path], Written]] = {
    "a single sector": _raw(512, 0),
    "a single byte": _raw(1, 0),
    "odd size": _raw(5 * MIB + 1001, 0, 2 * MIB - 2048, 4 * MIB - 512, 5 * MIB + 1000),
    "empty": _raw(6 * MIB),
    "full": _raw(4 * MIB + 3 * 65536, 0, length=5 * MIB),
    "last unit partial": _raw(4 * MIB + 512, 4 * MIB),
    "whole units": _raw(8 * MIB, 2 * MIB, 6 * MIB, length=2 * MIB),
    "1 TiB, sparse": _raw(1 << 40, 0, (1 << 39) - 2048, (1 << 40) - 4096),
    "compressed": _compressed,
    "4096-byte sectors": _sectors_of_4096,
    "shuffled vhdx": _qemu(14 * MIB, "vhdx", "subformat=dynamic,block_size=1M", _shuffled()),
    "shuffled vmdk": _qemu(14 * MIB + 512, "vmdk", "subformat=monolithicSparse", _shuffled()),
    "zeroes in the map": _qemu(
        14 * MIB, "qcow2", "cluster_size=65536", [*_shuffled(), f"write -z {2 * MIB} {3 * MIB}", "write -z 0 65536"]
    ),
}


def files_of(
    disk: DiskImage, format_name: str, variant: str, file_name: str, *, reproducible: bool = False, azure: bool = False
) -> tuple[LaidOutFile, ...]:
    """Lay a disk out."""
    writer, found = writer_for(format_name, variant)
    assert isinstance(writer, LayoutWriter)
    assert found == variant
    options = WriteOptions(variant=variant, file_name=file_name, reproducible=reproducible, azure=azure)
    return writer.layout(disk, options)


def write_by_map(file: LaidOutFile, folder: Path) -> Path:
    """Write a laid-out file front to back, from where its map says that the bytes are."""
    path = folder / file.name
    with path.open("wb") as target:
        at = 0
        for extent in file.content.extents():
            assert extent.offset == at
            assert extent.length > 0
            at = extent.end
            if extent.kind is not ExtentKind.DATA:
                target.seek(extent.length, os.SEEK_CUR)
                continue
            stored = extent.stored
            assert stored is not None
            if stored.decode is not None:
                unit = stored.decode(stored.source.read_at(stored.offset, stored.length))
                target.write(memoryview(unit)[stored.skip : stored.skip + extent.length])
                continue
            assert stored.length == extent.length
            for done in range(0, extent.length, PIECE):
                target.write(stored.source.read_at(stored.offset + done, min(PIECE, extent.length - done)))
        assert at == file.content.size
        target.truncate(at)
    return path
