"""Bars P5 to P7: converting an image into another format."""

import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchlib import caches
from benchlib.commands import Argument, BenchError, run
from benchlib.context import Context
from benchlib.dataset import MIB
from benchlib.pairs import DISKFS, Bar, Comparison, Unit, measure_in_turn, median_ratio

QEMU = "qemu-img convert"
QEMU_PARALLEL = "qemu-img convert -m 16 -W"
QEMU_NULL = "qemu-img convert to null-co"
QEMU_SYNCED = "qemu-img convert -t writeback"
COPY = "cp --sparse=always"
COPY_SYNCED = "cp --sparse=always; sync"
UNSYNCED = frozenset({QEMU, COPY})
"""Peers that end with gigabytes in memory that are not on the disk yet, which diskfs never does: for P7, where that is
most of the time, those that sync as diskfs does decide."""

MEMORY_LIMIT_MIB = 256.0
STREAM_OPTIMIZED = ("-O", "vmdk", "-o", "subformat=streamOptimized")


class _Program:
    """One way to convert: runs it, and keeps its CPU time, its peak memory and what it wrote."""

    def __init__(self, image: Path, target: Path | None, command: Sequence[Argument]) -> None:
        self._image = image
        self._target = target
        self._command = command
        self.cpu_seconds: list[float] = []
        self.max_rss = 0
        self.size = 0

    def __call__(self, _pair: int) -> float:
        caches.ensure_cached(self._image)
        if self._target is not None:
            self._target.unlink(missing_ok=True)
        # What the last one left to be written is not this one's burden.
        os.sync()
        finished = run(self._command)
        self.cpu_seconds.append(finished.cpu_seconds)
        self.max_rss = max(self.max_rss, finished.max_rss)
        if self._target is not None:
            self.size = self._target.stat().st_size
        return finished.seconds


def to_raw(context: Context) -> Iterator[Comparison]:
    """P5: a stream-optimized VMDK to a raw file, and into a pipe."""
    image = context.data.disk_stream_optimized()
    out = _Outputs(context)
    programs = {
        DISKFS: out.program(image, "diskfs.raw", lambda to: [context.diskfs, "convert", "--quiet", image, to]),
        QEMU: out.program(image, "qemu.raw", lambda to: ["qemu-img", "convert", "-O", "raw", image, to]),
        QEMU_PARALLEL: out.program(
            image, "qemu-m.raw", lambda to: ["qemu-img", "convert", "-m", "16", "-W", "-O", "raw", image, to]
        ),
    }
    yield from out.compared("P5", f"{image.name} -> raw file", programs, limit=1.5)
    size = context.data.scale.disk_size
    ours = f"{shlex.quote(str(context.diskfs))} convert {shlex.quote(str(image))} - -O raw | cat >/dev/null"
    null = ["qemu-img", "convert", "-n", "--target-image-opts", image, f"driver=null-co,size={size}"]
    programs = {DISKFS: _Program(image, None, ["sh", "-c", ours]), QEMU_NULL: _Program(image, None, null)}
    yield from out.compared("P5", f"{image.name} -> pipe, cat", programs, limit=2.0)


def to_stream_optimized(context: Context) -> Iterator[Comparison]:
    """P6: a raw disk to a stream-optimized VMDK: how fast, and how large."""
    image = context.data.disk()
    out = _Outputs(context)
    programs = {
        DISKFS: out.program(image, "diskfs.vmdk", lambda to: [context.diskfs, "convert", "--quiet", image, to]),
        QEMU: out.program(image, "qemu.vmdk", lambda to: ["qemu-img", "convert", *STREAM_OPTIMIZED, image, to]),
    }
    # The peer takes minutes; that is what is measured.
    yield from out.compared("P6", f"{image.name} -> streamOptimized", programs, limit=10.0)
    ours, theirs = programs[DISKFS], programs[QEMU]
    yield Comparison(
        bar_id="P6",
        work=f"{image.name} -> streamOptimized: size",
        unit=Unit.MEMORY,
        diskfs=(ours.size,),
        peer_name=QEMU,
        peer=(theirs.size,),
        measured=ours.size / theirs.size,
        bar=Bar(at_least=False, limit=1.1),
    )


def uncompressed(context: Context) -> Iterator[Comparison]:
    """P7: between raw, VHD and VHDX; raw to a fixed VHD beside cp."""
    raw = context.data.disk()
    out = _Outputs(context)
    for image, suffix, qemu_format in (
        (raw, "vhd", "vpc"),
        (raw, "vhdx", "vhdx"),
        (context.data.disk_as("vhd", "vpc"), "raw", "raw"),
        (context.data.disk_as("vhdx", "vhdx"), "raw", "raw"),
    ):
        options = ["-o", "force_size=on"] if qemu_format == "vpc" else []
        synced = ["-t", "writeback", *options]
        programs = {
            DISKFS: out.program(image, f"diskfs.{suffix}", _ours(context, image)),
            QEMU_SYNCED: out.program(image, f"qemu-synced.{suffix}", _theirs(image, qemu_format, synced)),
            QEMU: out.program(image, f"qemu.{suffix}", _theirs(image, qemu_format, options)),
        }
        yield from out.compared("P7", f"{image.name} -> {suffix}", programs, limit=1.0)
    programs = {
        DISKFS: out.program(raw, "diskfs.vhd", _ours(context, raw, "--variant", "fixed")),
        COPY_SYNCED: out.program(raw, "copy-synced.raw", lambda to: ["sh", "-c", _copied_and_synced(raw, to)]),
        COPY: out.program(raw, "copy.raw", lambda to: ["cp", "--sparse=always", raw, to]),
    }
    yield from out.compared("P7", f"{raw.name} -> fixed vhd", programs, limit=1.0)


def _ours(context: Context, image: Path, *options: str) -> Callable[[Path], list[Argument]]:
    return lambda to: [context.diskfs, "convert", "--quiet", *options, image, to]


def _theirs(image: Path, qemu_format: str, options: Sequence[str]) -> Callable[[Path], list[Argument]]:
    return lambda to: ["qemu-img", "convert", "-O", qemu_format, *options, image, to]


def _copied_and_synced(source: Path, target: Path) -> str:
    source_word, target_word = shlex.quote(str(source)), shlex.quote(str(target))
    return f"cp --sparse=always {source_word} {target_word} && sync {target_word}"


class _Outputs:
    """The folder that is written to, and the comparisons of those that write."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._folder = context.data.folder / "converted"

    def program(self, image: Path, name: str, command: Callable[[Path], list[Argument]]) -> _Program:
        target = self._folder / name
        return _Program(image, target, command(target))

    def compared(self, bar_id: str, work: str, programs: dict[str, _Program], *, limit: float) -> Iterator[Comparison]:
        self._folder.mkdir(exist_ok=True)
        try:
            samples = measure_in_turn(f"{bar_id} {work}", self._context.pairs, Unit.TIME, programs)
            self._require_same(programs)
        finally:
            for path in self._folder.iterdir():
                path.unlink()
            self._folder.rmdir()
        ours = programs[DISKFS]
        peers = [name for name in programs if name != DISKFS]
        like_us = [name for name in peers if name not in UNSYNCED]
        fastest = min(like_us if bar_id == "P7" else peers, key=lambda name: sum(samples[name]))
        for name in peers:
            yield Comparison(
                bar_id=bar_id,
                work=work,
                unit=Unit.TIME,
                diskfs=tuple(samples[DISKFS]),
                peer_name=name,
                peer=tuple(samples[name]),
                measured=median_ratio(samples[name], samples[DISKFS]),
                bar=Bar(at_least=True, limit=limit),
                decides=name == fastest,
            )
        peer = programs[fastest]
        yield Comparison(
            bar_id=bar_id,
            work=f"{work}: CPU time",
            unit=Unit.TIME,
            diskfs=tuple(ours.cpu_seconds),
            peer_name=fastest,
            peer=tuple(peer.cpu_seconds),
            measured=median_ratio(peer.cpu_seconds, ours.cpu_seconds),
            bar=Bar(at_least=True, limit=0.0),
        )
        yield Comparison(
            bar_id=bar_id,
            work=f"{work}: peak memory",
            unit=Unit.MEMORY,
            diskfs=(ours.max_rss,),
            peer_name=fastest,
            peer=(peer.max_rss,),
            measured=ours.max_rss / MIB,
            bar=Bar(at_least=False, limit=MEMORY_LIMIT_MIB, suffix=" MiB"),
        )

    def _require_same(self, programs: dict[str, _Program]) -> None:
        """Speed at writing something else does not count: what was written last is compared by qemu-img."""
        written = sorted(path for path in self._folder.iterdir() if not path.stem.startswith("copy"))
        if not programs or len(written) < 2:
            return
        for other in written[1:]:
            try:
                run(["qemu-img", "compare", "-q", written[0], other])
            except BenchError as error:
                raise BenchError(f"{written[0].name} and {other.name} differ: {error}") from error
