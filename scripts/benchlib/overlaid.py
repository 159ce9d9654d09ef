"""Bar P12: writing through an overlay, reading what it leaves untouched, and committing it.

The peer is qemu-storage-daemon with a qcow2 overlay over the same image, exported over FUSE as ours is. Both begin with
a new overlay for every measurement: what a first write costs is part of it.
"""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from benchlib import caches, loads
from benchlib.commands import Argument, run
from benchlib.context import Context
from benchlib.dataset import MIB
from benchlib.pairs import DISKFS, Bar, Comparison, Unit, compare_speeds, measure_in_turn
from benchlib.servers import diskfs_mount, qemu_overlay

QEMU = "qemu-storage-daemon, qcow2"
READ_ONLY = "diskfs without overlay"
CONVERT = "diskfs convert"
SAME = "diskfs convert, same content"
QEMU_CONVERT = "qemu-img convert -m 16 -W, qcow2"
WRITTEN = 256 * MIB
"""Bytes of one sequential write."""
FEW = 4096
"""Single blocks of 4 KiB that are changed before a commit."""
MANY = 50_000
AT_LEAST_AS_FAST = Bar(at_least=True, limit=1.0)
FIVE_PERCENT = Bar(at_least=True, limit=0.95)


def overlays(context: Context) -> Iterator[Comparison]:
    """Measure writes on a raw and a stream-optimized image, and reads of the latter."""
    stream = context.data.disk_stream_optimized()
    for image, image_format in ((context.data.disk(), "raw"), (stream, "vmdk")):
        yield from _writes(context, image, image_format)
    yield from _untouched(context, stream)


def _writes(context: Context, image: Path, image_format: str) -> Iterator[Comparison]:
    seconds = context.random_seconds

    def ours(rw: str, jobs: int, pair: int) -> float:
        with _new_folder(context) as folder:
            with diskfs_mount(context.diskfs, image, "--overlay", folder / "overlay") as file:
                return loads.writes(file, rw, jobs=jobs, seconds=seconds, size=WRITTEN, pair=pair)

    def theirs(rw: str, jobs: int, pair: int) -> float:
        with _new_folder(context) as folder, qemu_overlay(image, image_format, folder / "overlay.qcow2") as file:
            return loads.writes(file, rw, jobs=jobs, seconds=seconds, size=WRITTEN, pair=pair)

    for rw, jobs, unit in (("write", 1, Unit.THROUGHPUT), ("randwrite", 1, Unit.RATE), ("randwrite", 4, Unit.RATE)):
        caches.ensure_cached(image)
        work = f"{image.name}: " + (
            "sequential write, 1 MiB" if rw == "write" else f"random write, 4 KiB, {jobs} job{'s' * (jobs > 1)}"
        )
        contenders = {DISKFS: partial(ours, rw, jobs), QEMU: partial(theirs, rw, jobs)}
        samples = measure_in_turn(f"P12 {work}", context.pairs, unit, contenders)
        yield from compare_speeds("P12", work, unit, samples, AT_LEAST_AS_FAST)


def _untouched(context: Context, image: Path) -> Iterator[Comparison]:
    """Read a disk in whose overlay nothing is, and the same disk without one."""
    with _new_folder(context) as folder, contextlib.ExitStack() as stack:
        files = {
            DISKFS: stack.enter_context(diskfs_mount(context.diskfs, image, "--overlay", folder / "overlay")),
            READ_ONLY: stack.enter_context(diskfs_mount(context.diskfs, image)),
        }
        for file in files.values():
            loads.require_same_content(file, context.data.disk())

        def sequential(file: Path, _pair: int) -> float:
            caches.ensure_cached(image)
            caches.drop(file)
            return loads.sequential_read(file)

        def random(file: Path, pair: int) -> float:
            caches.drop(file)
            return loads.random_reads(file, jobs=1, seconds=context.random_seconds, pair=pair)

        for name, unit, measure in (("dd bs=1M", Unit.THROUGHPUT, sequential), ("4 KiB at random", Unit.RATE, random)):
            work = f"{image.name}: untouched, {name}"
            contenders = {contender: partial(measure, file) for contender, file in files.items()}
            samples = measure_in_turn(f"P12 {work}", context.pairs, unit, contenders)
            yield from compare_speeds("P12", work, unit, samples, FIVE_PERCENT)


def commits(context: Context) -> Iterator[Comparison]:
    """Commit a disk to a raw file; convert the same disk without changes, and an image that has the changes.

    Once with what preparing a disk changes, files copied in and tables changed; once with as many single blocks as
    random writes for some seconds leave, which is the worst that a commit can meet. What qemu-img makes of a qcow2
    overlay with the same changes stands beside it.
    """
    image = context.data.disk_stream_optimized()
    few = ((("write", WRITTEN, None), ("randwrite", 0, FEW)), f"{WRITTEN // MIB} MiB and {FEW:,} blocks changed")
    many = ((("randwrite", 0, MANY),), f"{MANY:,} blocks changed at random")
    for changes, name in (few, many):
        with _new_folder(context) as folder:
            overlay, same, theirs = folder / "overlay", folder / "same.vmdk", folder / "overlay.qcow2"
            with diskfs_mount(context.diskfs, image, "--overlay", overlay) as file:
                _change(file, changes)
            run([context.diskfs, "commit", overlay, "--quiet", same])
            with qemu_overlay(image, "vmdk", theirs) as file:
                _change(file, changes)
            target = folder / "target.raw"
            qemu = ["qemu-img", "convert", "-m", "16", "-W", "-O", "raw", theirs, target]
            contenders = {
                DISKFS: partial(_timed, context, image, target, [context.diskfs, "commit", overlay, "--quiet", target]),
                CONVERT: partial(_timed, context, image, target, [context.diskfs, "convert", image, "--quiet", target]),
                SAME: partial(_timed, context, same, target, [context.diskfs, "convert", same, "--quiet", target]),
                QEMU_CONVERT: partial(_timed, context, image, target, qemu),
            }
            samples = measure_in_turn(f"P12C commit, {name}", context.pairs, Unit.THROUGHPUT, contenders)
            yield from compare_speeds("P12C", f"commit to raw, {name}", Unit.THROUGHPUT, samples, FIVE_PERCENT)


def _change(file: Path, changes: Sequence[tuple[str, int, int | None]]) -> None:
    for rw, size, count in changes:
        loads.writes(file, rw, jobs=1, seconds=0, size=size, count=count, pair=0)


def _timed(context: Context, image: Path, target: Path, command: Sequence[Argument], _pair: int) -> float:
    caches.ensure_cached(image)
    target.unlink(missing_ok=True)
    return context.data.scale.disk_size / run(command).seconds


@contextlib.contextmanager
def _new_folder(context: Context) -> Iterator[Path]:
    """Give a folder on the disk that the images lie on."""
    with tempfile.TemporaryDirectory(prefix="overlay-", dir=context.data.folder) as folder:
        yield Path(folder)
