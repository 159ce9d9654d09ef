"""The images that are measured: disks filled with real files, built once and kept.

Needs root, loop devices and qemu-img; about 9 GB of disk space in full and 2 GB with the quick scale. Every image is
built in a folder aside and moved when it is complete, so an interrupted build leaves nothing half done in use.
"""

import contextlib
import itertools
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchlib.commands import run

MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40

LAYOUT = 1
"""Counts up whenever the images are built in another way; images of another layout are not used."""

REAL_FILES = Path("/usr")
BLOCK_SIZE = 4096
FIRST_PARTITION_OFFSET = MIB
BACKUP_GPT_SIZE = MIB
FILL_SLACK = MIB
"""A partition that is full but for this much is full."""

SPARSE_VARIANTS = ("raw", "monolithicSparse", "streamOptimized")


def size_text(size: int) -> str:
    """Return a size for labels: `1 TiB`, `64 GiB`."""
    return f"{size // TIB} TiB" if size >= TIB else f"{size // GIB} GiB"


@dataclass(frozen=True, slots=True)
class Scale:
    """How large the images are. `fill` is the size of the files inside, in bytes."""

    name: str
    disk_size: int
    disk_fill: int
    sparse_size: int
    sparse_fill: int


FULL = Scale("full", disk_size=4 * GIB, disk_fill=3 * GIB, sparse_size=TIB, sparse_fill=GIB)
# mkfs.xfs refuses partitions under 300 MB, which is what keeps the quick disk from being smaller still.
QUICK = Scale("quick", disk_size=GIB, disk_fill=768 * MIB, sparse_size=64 * GIB, sparse_fill=64 * MIB)


class DataSet:
    """The images of one scale in one folder. Each is built when it is first asked for."""

    def __init__(self, work_dir: Path, scale: Scale) -> None:
        self.scale = scale
        self.folder = work_dir / f"{scale.name}-{LAYOUT}"
        self.folder.mkdir(parents=True, exist_ok=True)

    def disk(self) -> Path:
        """Return the raw disk: GPT, ext4 and xfs, filled with real files."""
        return self._built("disk.raw", self._build_disk)

    def disk_stream_optimized(self) -> Path:
        """Return the disk as qemu-img writes it as a stream-optimized VMDK."""
        return self._converted(self.disk(), "disk-stream.vmdk", "streamOptimized")

    def disk_as(self, suffix: str, qemu_format: str) -> Path:
        """Return the disk as qemu-img writes it in an uncompressed format with its own allocation."""
        raw = self.disk()

        def build(partial: Path) -> None:
            options = ["-o", "force_size=on"] if qemu_format == "vpc" else []
            run(["qemu-img", "convert", "-f", "raw", "-O", qemu_format, *options, raw, partial])

        return self._built(f"disk.{suffix}", build)

    def sparse(self, variant: str) -> Path:
        """Return the large, nearly empty disk in one of SPARSE_VARIANTS."""
        raw = self._built("sparse.raw", self._build_sparse)
        return raw if variant == "raw" else self._converted(raw, f"sparse-{variant}.vmdk", variant)

    def small(self) -> Path:
        """Return a sparse VMDK of a few MiB with one ext4 partition."""
        return self._converted(self._built("small.raw", _build_small), "small.vmdk", "monolithicSparse")

    def _built(self, name: str, build: Callable[[Path], None]) -> Path:
        path = self.folder / name
        if not path.exists():
            print(f"building {path}", file=sys.stderr)
            # In a folder of its own and not under another name: a VMDK descriptor repeats the name of its file.
            partial = self.folder / "incomplete" / name
            partial.parent.mkdir(exist_ok=True)
            partial.unlink(missing_ok=True)
            build(partial)
            partial.rename(path)
            partial.parent.rmdir()
        return path

    def _converted(self, source: Path, name: str, variant: str) -> Path:
        def build(partial: Path) -> None:
            run(["qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", f"subformat={variant}", source, partial])

        return self._built(name, build)

    def _build_disk(self, path: Path) -> None:
        half = self.scale.disk_size // 2
        _make_partitioned(path, self.scale.disk_size, [half - FIRST_PARTITION_OFFSET, half - BACKUP_GPT_SIZE])
        files = _real_files()
        with _loop_device(path, FIRST_PARTITION_OFFSET, half - FIRST_PARTITION_OFFSET) as device:
            # /usr has many small files: twice the usual number of inodes.
            run(["mkfs.ext4", "-q", "-i", "8192", device])
            _fill(device, path, files, self.scale.disk_fill // 2)
        with _loop_device(path, half, half - BACKUP_GPT_SIZE) as device:
            run(["mkfs.xfs", "-q", device])
            _fill(device, path, files, self.scale.disk_fill // 2)

    def _build_sparse(self, path: Path) -> None:
        size = self.scale.sparse_size - FIRST_PARTITION_OFFSET - BACKUP_GPT_SIZE
        _make_partitioned(path, self.scale.sparse_size, [size])
        with _loop_device(path, FIRST_PARTITION_OFFSET, size) as device:
            run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", device])
            # Left alone, the kernel would spend the mount writing gigabytes of empty inode tables.
            _fill(device, path, _real_files(), self.scale.sparse_fill, options="noinit_itable")


def _build_small(path: Path) -> None:
    size = 14 * MIB
    _make_partitioned(path, 16 * MIB, [size])
    run(["mkfs.ext4", "-q", "-E", f"offset={FIRST_PARTITION_OFFSET}", path, f"{size // 1024}k"])


def _make_partitioned(path: Path, size: int, partition_sizes: list[int]) -> None:
    """Make a file of holes with a GPT and partitions that follow each other from 1 MiB on."""
    with path.open("wb") as file:
        file.truncate(size)
    command = ["sgdisk", "--clear"]
    first_lba = FIRST_PARTITION_OFFSET // 512
    for number, partition_size in enumerate(partition_sizes, start=1):
        end_lba = first_lba + partition_size // 512
        command += ["--new", f"{number}:{first_lba}:{end_lba - 1}", "--typecode", f"{number}:8300"]
        first_lba = end_lba
    run([*command, path])


@contextlib.contextmanager
def _loop_device(image: Path, offset: int, size: int) -> Iterator[str]:
    device = run(
        ["losetup", "--find", "--show", "--offset", str(offset), "--sizelimit", str(size), image]
    ).stdout.strip()
    try:
        yield device
    finally:
        run(["losetup", "--detach", device])


def _fill(device: str, image: Path, files: Iterator[tuple[Path, Path]], budget: int, options: str = "defaults") -> None:
    """Copy files onto the file system on `device` until they take `budget` bytes of blocks."""
    mountpoint = image.with_name(f"{image.name}.mnt")
    mountpoint.mkdir(exist_ok=True)
    run(["mount", "-o", options, device, mountpoint])
    try:
        while budget > FILL_SLACK:
            source, relative = next(files)
            blocks_size = -(-source.stat().st_size // BLOCK_SIZE) * BLOCK_SIZE
            if blocks_size <= budget:
                target = mountpoint / relative
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
                budget -= blocks_size
    finally:
        run(["umount", mountpoint])
        mountpoint.rmdir()


def _real_files() -> Iterator[tuple[Path, Path]]:
    """Yield (file, relative path of its copy) for every readable file with content, again and again."""
    for number in itertools.count(1):
        for folder, folders, names in os.walk(REAL_FILES):
            folders.sort()
            for path in (Path(folder, name) for name in sorted(names)):
                status = path.lstat()
                if stat.S_ISREG(status.st_mode) and status.st_size and os.access(path, os.R_OK):
                    yield path, Path(f"copy{number}", path.relative_to(REAL_FILES))
