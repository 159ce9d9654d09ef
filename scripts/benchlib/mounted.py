"""Bars P1 to P4: reading an image through a mount."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from benchlib import caches, loads
from benchlib.context import Context
from benchlib.pairs import DISKFS, Bar, Comparison, Unit, compare_speeds, measure_in_turn
from benchlib.servers import Server, diskfs_mount, qemu_export, vmdkmount

QEMU = "qemu-storage-daemon"
VMDKMOUNT = "vmdkmount"

JOBS = (1, 4)


def raw_cached(context: Context) -> Iterator[Comparison]:
    """P1: a raw image, read from beginning to end through the kernel's page cache."""
    with _raw(context) as mounted:
        yield from mounted.sequential("P1", Bar(at_least=True, limit=1.0))


def raw_direct(context: Context) -> Iterator[Comparison]:
    """P2: the same with O_DIRECT, every megabyte a request of its own."""
    with _raw(context) as mounted:
        yield from mounted.sequential("P2", Bar(at_least=True, limit=2.0), direct=True)


def raw_random(context: Context) -> Iterator[Comparison]:
    """P3: 4 KiB at random places of a raw image with O_DIRECT."""
    with _raw(context) as mounted:
        yield from mounted.random("P3", Bar(at_least=True, limit=1.0))


def stream_optimized(context: Context) -> Iterator[Comparison]:
    """P4: a stream-optimized VMDK, from beginning to end and at random places."""
    image = context.data.disk_stream_optimized()
    servers = {
        DISKFS: partial(diskfs_mount, context.diskfs, image),
        QEMU: partial(qemu_export, image, "vmdk"),
        VMDKMOUNT: partial(vmdkmount, image),
    }
    with _mounted(context, image, servers) as mounted:
        yield from mounted.sequential("P4", Bar(at_least=True, limit=2.0))
        yield from mounted.random("P4", Bar(at_least=True, limit=1.5))


class _Mounted:
    """An image as each of the servers shows it: the loads to put on all of them in turn."""

    def __init__(self, context: Context, image: Path, files: Mapping[str, Path]) -> None:
        self._context = context
        self._image = image
        self._files = files

    def sequential(self, bar_id: str, bar: Bar, *, direct: bool = False) -> list[Comparison]:
        def measure(file: Path, _pair: int) -> float:
            return loads.sequential_read(file, direct=direct)

        work = "dd bs=1M iflag=direct" if direct else "dd bs=1M"
        return self._compare(bar_id, work, Unit.THROUGHPUT, measure, bar)

    def random(self, bar_id: str, bar: Bar) -> Iterator[Comparison]:
        for jobs in JOBS:

            def measure(file: Path, pair: int, jobs: int = jobs) -> float:
                return loads.random_reads(file, jobs=jobs, seconds=self._context.random_seconds, pair=pair)

            work = f"random 4 KiB, {jobs} job{'s' if jobs > 1 else ''}"
            yield from self._compare(bar_id, work, Unit.RATE, measure, bar)

    def _compare(
        self, bar_id: str, load: str, unit: Unit, measure: Callable[[Path, int], float], bar: Bar
    ) -> list[Comparison]:
        def measure_prepared(file: Path, pair: int) -> float:
            caches.ensure_cached(self._image)
            caches.drop(file)
            reached = measure(file, pair)
            caches.drop(file)  # Else the copies of several servers could crowd the image out of memory.
            return reached

        work = f"{self._image.name}: {load}"
        contenders = {name: partial(measure_prepared, file) for name, file in self._files.items()}
        samples = measure_in_turn(f"{bar_id} {work}", self._context.pairs, unit, contenders)
        return compare_speeds(bar_id, work, unit, samples, bar)


@contextlib.contextmanager
def _mounted(context: Context, image: Path, servers: Mapping[str, Server]) -> Iterator[_Mounted]:
    """Have all servers up at once, so that they can be measured in turn; all must show the bytes of the disk."""
    caches.ensure_cached(image)
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(serve()) for name, serve in servers.items()}
        for file in files.values():
            # Also the warm-up: every server has started its threads and read its first tables before the first pair.
            loads.require_same_content(file, context.data.disk())
        yield _Mounted(context, image, files)


@contextlib.contextmanager
def _raw(context: Context) -> Iterator[_Mounted]:
    image = context.data.disk()
    servers: dict[str, Server] = {
        DISKFS: partial(diskfs_mount, context.diskfs, image),
        QEMU: partial(qemu_export, image, "raw"),
    }
    with _mounted(context, image, servers) as mounted:
        yield mounted
