"""One conversion: a disk, written in a format to a target, all of it or nothing."""

import contextlib
import os
import stat
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeAlias

from diskfs.convert.compare import first_difference
from diskfs.convert.copy import Copied, copy_disk
from diskfs.convert.counting import CountedDisk, CountingSink
from diskfs.errors import SinkError
from diskfs.sinks import system_calls
from diskfs.sinks.device import DeviceSink
from diskfs.sinks.device_layers import share_bytes
from diskfs.sinks.file import FileSink
from diskfs.sinks.opening import STANDARD_OUTPUT, is_s3, open_target, require_readable, target_status
from diskfs.sinks.pipe import PipeSink
from diskfs.sinks.positioned import ObjectSink, sink_error
from diskfs.sources.file import FileSource, open_file, open_files
from diskfs.sources.locate import LocatedSource, files_beside, open_location
from diskfs.sources.locations import RemoteOptions
from diskfs_formats.driver import DiskImage, NoRelatedFiles, RelatedFiles
from diskfs_formats.errors import ChecksumMismatch, CorruptImage, ParentUnavailable, UnsupportedFeature
from diskfs_formats.findings import Severity
from diskfs_formats.registry import driver_named, writer_for
from diskfs_formats.source import ByteSource, SourceSlice
from diskfs_formats.text import printable
from diskfs_formats.writer import LaidOutFile, LayoutWriter, Progress, StreamWriter, WriteOptions

if TYPE_CHECKING:
    from diskfs.sinks.s3_multipart import S3Sink

Phase: TypeAlias = Callable[[str, int], AbstractContextManager[Progress]]
"""Begins a phase of the work, of so many bytes, and gives what is to be told of its progress."""
Target: TypeAlias = "FileSink | PipeSink | DeviceSink | S3Sink"
STREAM_OVERHEAD = 32
"""A stream is at most this part larger than its disk, and STREAM_TABLES: grains that do not compress, and markers."""
STREAM_TABLES = 16 << 20
FLAT_ENDINGS = ("-flat", "-flat-2")
"""The endings of the data file's name, the usual one first: an image that replaces another takes a free one."""
MAX_DESCRIPTOR = 64 << 10
"""Bytes at the beginning of an old image in which the names of its further files are looked for."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be written, and where to."""

    target: str
    format: str
    options: WriteOptions
    replace: bool = False
    verify: bool = False
    remote: RemoteOptions = field(default_factory=RemoteOptions)
    """How S3 is reached, for a target there."""


@dataclass(slots=True)
class Summary:
    """What a conversion did. Bytes: of the disks, in all and read as data; of the target, written."""

    variant: str = ""
    virtual_size: int = 0
    read: int = 0
    written: int = 0
    file_size: int = 0
    seconds: float = 0.0
    verified: bool = False
    upload: dict[str, int] | None = None
    """Of targets in S3: `requests`, of them `retries`, and `bytes_sent`."""

    @property
    def skipped(self) -> int:
        """Bytes of the disks that are zero by the map, and were not read."""
        return self.virtual_size - self.read

    @property
    def ratio(self) -> float | None:
        """Bytes written for each byte of data; None if there was no data."""
        return self.written / self.read if self.read else None


def convert_disk(disk: DiskImage, job: Job, phase: Phase) -> Summary:
    """Write `disk` as the job says. Raises DiskfsError; then, and if it is interrupted, the target is what it was.

    A pipe and a block device are written in place: they cannot be what they were.
    """
    begin = time.monotonic()
    writer, variant = writer_for(job.format, job.options.variant)
    options = replace(job.options, variant=variant)
    summary = Summary(variant, disk.size)
    unused: list[str] = []
    with Sinks(job) as sinks:
        sink = sinks.open_main()
        if isinstance(writer, StreamWriter):
            if isinstance(sink, ObjectSink):
                sink.expect(largest_stream(disk.size), exact=False)
            counted, counting = CountedDisk(disk), CountingSink(sink)
            with phase("writing", disk.size) as progress:
                writer.write(counted, counting, options, progress)
            _note(summary, counted, counting)
            main_size = counting.size
        else:
            files, unused = _lay_out(disk, writer, options, sinks)
            main_size = files[0].content.size
            summary.file_size = sum(file.content.size for file in files)
            targets = [sink, *(sinks.open_beside(file.name) for file in files[1:])]
            with phase("writing", summary.file_size) as progress:
                for file, target in zip(files, targets, strict=True):
                    _add(summary, copy_disk(file.content, target, progress, threads=options.threads))
        sinks.finish(summary, lambda: _verify(disk, job, sinks, main_size, phase))
        sinks.remove_beside(unused)
    summary.seconds = time.monotonic() - begin
    return summary


def _lay_out(
    disk: DiskImage, writer: LayoutWriter, options: WriteOptions, sinks: "Sinks"
) -> tuple[Sequence[LaidOutFile], list[str]]:
    """Return the files of the image, and the names of files that nothing needs once it has replaced the old image.

    One rename publishes an image of two files, so its data must not take the place of the old image's. Raises
    SinkError.
    """
    files = writer.layout(disk, options)
    if len(files) == 1:
        return files, []
    used: list[str] = []
    free: Sequence[LaidOutFile] = ()
    for ending in FLAT_ENDINGS:
        files = writer.layout(disk, replace(options, flat_ending=ending))
        needed = [file.name for file in files[1:] if sinks.old_image_names(file.name)]
        used += needed
        if not needed and not free:
            free = files
    if not free:
        raise SinkError(f"{sinks.main.name}: the image there has the files {', '.join(used)}; choose another target")
    return free, used


class Sinks:
    """The targets of one conversion, the main one first; aborted on leaving unless they were committed."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._open: dict[str, Target] = {}

    def open_main(self) -> Target:
        """Open the target itself; raises SinkError if it may not be written."""
        return self._opened(self._job.target)

    def open_beside(self, file_name: str) -> Target:
        """Open a further file in the target's folder."""
        if isinstance(self.main, ObjectSink):
            return self._opened(f"{self._job.target.rpartition('/')[0]}/{file_name}")
        if not isinstance(self.main, FileSink):
            raise SinkError(
                f"{printable(self._job.target)}: this variant is several files, and they can only go to a folder; "
                "choose another --variant"
            )
        return self._opened(self._beside(file_name))

    @property
    def files(self) -> dict[str, FileSink]:
        """The files that are being written, by their own names."""
        return {Path(name).name: sink for name, sink in self._open.items() if isinstance(sink, FileSink)}

    @property
    def main(self) -> Target:
        """The target itself."""
        return next(iter(self._open.values()))

    def old_image_names(self, file_name: str) -> bool:
        """Tell whether what is at the target now is an image that has a further file of this name; raises SinkError."""
        if not isinstance(self.main, FileSink) or not self._job.replace:
            return False
        try:
            with self.main.path.open("rb") as file:
                text = file.read(MAX_DESCRIPTOR)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise sink_error(error, self.main.name, "reading which files the old image has") from error
        if f'"{file_name}"'.lower().encode("utf-8", "surrogateescape") not in text.lower():
            return False
        require_no_source(self._beside(file_name))
        return True

    def remove_beside(self, file_names: Sequence[str]) -> None:
        """Remove files that only the replaced image had, links excepted; raises SinkError."""
        for name in file_names:
            path = Path(self._beside(name))
            if path.is_symlink():
                continue
            try:
                system_calls.unlink(path)
            except FileNotFoundError:
                continue
            except OSError as error:
                doing = f"the new image is complete, but removing {printable(name)} of the old one failed"
                raise sink_error(error, self.main.name, doing) from error

    def _beside(self, file_name: str) -> str:
        return str(Path(self._job.target).with_name(file_name))

    def finish(self, summary: Summary, verify: Callable[[], None]) -> None:
        """Publish everything, and read it back if the job says so: before it is published, where that can be."""
        objects = [sink for sink in self._open.values() if isinstance(sink, ObjectSink)]
        if self._job.verify and not objects:
            verify()
        try:
            self.commit()
            if self._job.verify and objects:
                verify()
        except (ChecksumMismatch, CorruptImage, SinkError):
            for sink in objects:
                with contextlib.suppress(SinkError):
                    sink.withdraw()
            raise
        summary.verified = self._job.verify
        if objects:
            summary.upload = {
                name: sum(getattr(sink.counts, name) for sink in objects)
                for name in ("requests", "retries", "bytes_sent")
            }

    def commit(self) -> None:
        """Publish them all, the main one last: only that one makes an image of the others."""
        for sink in self._open.values():
            if not isinstance(sink, PipeSink):
                sink.flush()
        try:
            for sink in reversed(list(self._open.values())):
                sink.commit()
        finally:
            main = self.main
            if isinstance(main, FileSink) and not main.committed:
                for sink in self._open.values():
                    if isinstance(sink, FileSink):
                        sink.withdraw()

    def _opened(self, target: str) -> Target:
        sink: Target
        if is_s3(target):
            sink = _open_object(target, self._job)
        else:
            require_no_source(target)
            if self._job.verify:
                require_readable(target)
            sink = open_target(target, replace=self._job.replace)
        self._open[target] = sink
        return sink

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for sink in self._open.values():
            sink.abort()


def _open_object(target: str, job: Job) -> "S3Sink":
    # Loaded here: boto3 takes a quarter of a second, and a file needs none of it.
    from diskfs.clients import READ_TIMEOUT  # noqa: PLC0415
    from diskfs.sinks.s3_multipart import S3Sink, target_place  # noqa: PLC0415
    from diskfs.sources.remote_source import names_object  # noqa: PLC0415
    from diskfs.sources.s3 import way_of  # noqa: PLC0415

    place = target_place(target)
    source = names_object(place.bucket, place.key)
    if source is not None:
        raise SinkError(f"{printable(target)}: it is {source}, which is being read; choose another target")
    way = way_of(job.remote, READ_TIMEOUT)
    payer = job.remote.requester_pays
    return S3Sink(target, way, replace=job.replace, deadline=job.remote.deadline, requester_pays=payer)


def largest_stream(disk_size: int) -> int:
    """Return what a stream-optimized image of a disk is not larger than, in bytes."""
    return disk_size + disk_size // STREAM_OVERHEAD + STREAM_TABLES


def require_no_source(target: str) -> None:
    """Raise SinkError if the target is one of the files that are being read, by whatever name: the image, a parent, an
    extent, a device, and what lies below a device.
    """
    status = target_status(target)
    for source in open_files():
        if status is None or not share_bytes(status, source.status):
            continue
        shown = "standard output" if target == STANDARD_OUTPUT else printable(target)
        is_same = stat.S_IFMT(status.st_mode) == stat.S_IFMT(source.status.st_mode) and (
            os.path.samestat(status, source.status) or status.st_rdev == source.status.st_rdev != 0
        )
        found = f"it is {source.name}" if is_same else f"it shares its bytes with {source.name}"
        raise SinkError(f"{shown}: {found}, which is being read; choose another target")


def _add(summary: Summary, copied: Copied) -> None:
    summary.read += copied.read
    summary.written += copied.written


def _note(summary: Summary, counted: CountedDisk, target: CountingSink) -> None:
    summary.read = counted.data
    summary.written = target.written
    summary.file_size = target.size


class _PartialFiles(NoRelatedFiles):
    """The further files of an image that is not committed yet, by the names that they will have."""

    def __init__(self, files: dict[str, FileSink]) -> None:
        self._files = files

    def open(self, file_name: str, /) -> ByteSource:
        if file_name not in self._files:
            raise ParentUnavailable(f"{printable(file_name)!r} was not written")
        return open_file(self._files[file_name].partial)


def _verify(disk: DiskImage, job: Job, sinks: Sinks, size: int, phase: Phase) -> None:
    """Read back what was written, by its format's own driver, and compare it with the disk."""
    with contextlib.ExitStack() as stack:
        main = sinks.main
        related: RelatedFiles
        if isinstance(main, ObjectSink):
            source = stack.enter_context(contextlib.closing(open_written(main, job)))
            written: ByteSource = source
            related = files_beside(source, options=job.remote)
        else:
            written = _written(main, size, stack)
            related = _PartialFiles(sinks.files)
        image = driver_named(job.format).open(written, related)
        stack.callback(image.close)
        # Damage that our reader copes with, by a second copy, may be too much for others.
        for finding in image.info.findings:
            # A raw disk has no structures; its size is the source's, whatever it is.
            if finding.severity is not Severity.INFO and job.format != "raw":
                raise CorruptImage(f"{printable(job.target)}: what was written is not sound: {finding.message}")
        require_same(disk, image, job, phase, stack)


def open_written(sink: ObjectSink, job: Job) -> LocatedSource:
    """Open what was just published, as anybody would: nothing of it comes from a cache."""
    return open_location(sink.location, replace(job.remote, cache_folder=None))


def _written(sink: FileSink | PipeSink | DeviceSink, size: int, stack: contextlib.ExitStack) -> ByteSource:
    """Return what was written as a source, from the disk and not from memory if that can be had; `stack` closes it."""
    if isinstance(sink, PipeSink):
        raise UnsupportedFeature("what went into a pipe cannot be read back; leave --verify out")
    sink.flush()
    source = open_file(sink.partial if isinstance(sink, FileSink) else sink.path)
    stack.callback(source.close)
    drop_cached(source)
    return SourceSlice(source, 0, size, source.name)


def drop_cached(source: FileSource) -> None:
    """Have the kernel forget what it has of a file in memory, as far as it is on the disk."""
    with contextlib.suppress(OSError):
        descriptor = os.open(source.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def require_same(disk: DiskImage, image: DiskImage, job: Job, phase: Phase, stack: contextlib.ExitStack) -> None:
    """Raise ChecksumMismatch unless what was written reads as the disk."""
    progress = stack.enter_context(phase("verifying", max(disk.size, image.size)))
    different = first_difference(disk, image, progress, threads=job.options.threads)
    if different is not None:
        raise ChecksumMismatch(
            f"{printable(job.target)}: what was written differs from {disk.name} at offset {different:#x}; "
            + (
                "the object was removed"
                if is_s3(job.target)
                else "the target was left as it was: check the disk that it lies on"
            )
        )
