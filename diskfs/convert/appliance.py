"""Writing an appliance: descriptor, manifest and disks in one tar archive (OVA).

What comes before the disks has a size that is known, or can be filled up to one: the disks go straight to their places,
and what describes them is written last.
"""

import contextlib
import hashlib
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import cast
from urllib.parse import unquote

from diskfs.convert.copy import copy_disk
from diskfs.convert.counting import CountedDisk
from diskfs.convert.job import (
    STREAM_TABLES,
    Job,
    Phase,
    Sinks,
    Summary,
    Target,
    drop_cached,
    largest_stream,
    open_written,
    require_same,
)
from diskfs.errors import SinkError
from diskfs.sinks.file import FileSink
from diskfs.sinks.pipe import PipeSink
from diskfs.sinks.positioned import ObjectSink, PositionedSink
from diskfs.sources.file import open_file
from diskfs.sources.locate import LocatedSource
from diskfs_formats.binary import align_up
from diskfs_formats.driver import DiskImage, NoRelatedFiles
from diskfs_formats.errors import CorruptImage, UnsupportedFeature
from diskfs_formats.findings import Severity
from diskfs_formats.identity import creation_time
from diskfs_formats.manifest import STEP
from diskfs_formats.ova import Appliance, open_ova
from diskfs_formats.ovf import OvfFile, chunk_name
from diskfs_formats.ovf_writing import WrittenDisk, corrected_descriptor, made_descriptor
from diskfs_formats.raw import RawDriver
from diskfs_formats.reading import zeroes
from diskfs_formats.registry import open_image
from diskfs_formats.source import Buffer, ByteSource
from diskfs_formats.tar_writing import archive_end, padding, tar_header
from diskfs_formats.text import printable
from diskfs_formats.vmdk.header import SECTOR
from diskfs_formats.vmdk.stream_writing import StreamOptimizedWriter
from diskfs_formats.writer import Progress, WriteOptions

VARIANT = "streamOptimized"
MAX_STEM = 80
"""Bytes of the appliance's name that its members' names repeat: a name in a tar has at most 100."""
_LARGEST = (1 << 63) - 1
_DISK_SUFFIX = re.compile(r"(?:\.(?:vmdk|vhdx?|vdi|qcow2?|raw|img|gz))+$", re.IGNORECASE)
_HEADER_SIZE = 512


@dataclass(frozen=True, slots=True)
class ApplianceSource:
    """An appliance whose descriptor is kept: the files of its disks in the order of the disks that are written."""

    appliance: Appliance
    files: tuple[OvfFile, ...]


def convert_appliance(
    disks: Sequence[DiskImage], job: Job, phase: Phase, kept: ApplianceSource | None = None
) -> Summary:
    """Write disks as an appliance. Its descriptor is that of `kept`, corrected, or one made for the disks.

    Raises DiskfsError; then, and if it is interrupted, the target is what it was.
    """
    begin = time.monotonic()
    summary = Summary(VARIANT, sum(disk.size for disk in disks))
    plan = _Plan.of(disks, job, kept)
    with Sinks(job) as sinks:
        main = sinks.open_main()
        if isinstance(main, PipeSink):
            # A tar says a member's size before its bytes: the whole is made beside, and goes through the pipe then.
            _through_temporary(plan, main, phase, summary)
        elif isinstance(main, ObjectSink):
            main.expect(_largest(plan), exact=False)
            _write(plan, main, phase, summary)
        elif isinstance(main, FileSink):
            _write(plan, main, phase, summary)
        else:
            raise SinkError(f"{main.name}: an appliance is an archive, and goes to a file or a pipe, not to a device")
        sinks.finish(summary, lambda: _verify(plan, main, phase))
    summary.seconds = time.monotonic() - begin
    return summary


@dataclass(frozen=True, slots=True)
class _Plan:
    """The members of the archive: `ovf`, `mf`, the disks under `names`, and further files of the source as they are."""

    disks: tuple[DiskImage, ...]
    names: tuple[str, ...]
    members: tuple[tuple[str, DiskImage | ByteSource], ...]
    """Everything after descriptor and manifest, in the order of the References section."""
    stem: str
    job: Job
    kept: ApplianceSource | None

    @classmethod
    def of(cls, disks: Sequence[DiskImage], job: Job, kept: ApplianceSource | None) -> "_Plan":
        stem = _safe_stem(Path(job.options.file_name).stem)
        if kept is None:
            names = tuple(f"{stem}-disk{number}.vmdk" for number in range(1, len(disks) + 1))
            return cls(tuple(disks), names, tuple(zip(names, disks, strict=True)), stem, job, None)
        others = {file: tuple(_as_stored(kept.appliance, file)) for file in kept.appliance.descriptor.files}
        taken = {name.lower() for file in others if file not in kept.files for name, _ in others[file]}
        names = tuple(_unique(_disk_name(file.href), taken) for file in kept.files)
        of_disks = dict(zip(kept.files, zip(names, disks, strict=True), strict=True))
        members: list[tuple[str, DiskImage | ByteSource]] = []
        for file, stored in others.items():
            # Files of one href are one member.
            members += [of_disks[file]] if file in of_disks else [one for one in stored if one not in members]
        while taken & {f"{stem}{ending}".lower() for ending in (".ovf", ".mf")}:
            stem += "-2"
        return cls(tuple(disks), names, tuple(members), stem, job, kept)

    def descriptor(self, written: Sequence[WrittenDisk]) -> bytes:
        """Return the descriptor's text for disks as they were written."""
        if self.kept is None:
            return made_descriptor(written, self.stem)
        appliance = self.kept.appliance
        source = dict(appliance.members)[appliance.descriptor_name]
        data = source.read_at(0, source.size)
        return corrected_descriptor(data, dict(zip(self.kept.files, written, strict=True)), source.name)

    def descriptor_space(self) -> int:
        """Return how many bytes the descriptor takes at most."""
        largest = [
            WrittenDisk(name, _LARGEST, disk.size, disk.size) for name, disk in zip(self.names, self.disks, strict=True)
        ]
        return len(self.descriptor(largest))

    def manifest(self, digests: Sequence[str]) -> bytes:
        """Return the manifest's text: of the descriptor, and of what comes after it."""
        names = (f"{self.stem}.ovf", *(name for name, _ in self.members))
        return "".join(f"SHA256({name})= {digest}\n" for name, digest in zip(names, digests, strict=True)).encode()


def _write(plan: _Plan, sink: PositionedSink | ObjectSink, phase: Phase, summary: Summary) -> None:
    options = plan.job.options
    mtime = creation_time(options) or 0
    ovf_name, mf_name = f"{plan.stem}.ovf", f"{plan.stem}.mf"
    ovf_size = plan.descriptor_space()
    mf_size = len(plan.manifest(["0" * 64] * (1 + len(plan.members))))
    at = sum(_HEADER_SIZE + size + len(padding(size)) for size in (ovf_size, mf_size))
    written: dict[str, WrittenDisk] = {}
    digests: list[str] = []
    with phase("writing", sum(content.size for _, content in plan.members)) as progress:
        for name, content in plan.members:
            member = _MemberSink(sink, at + _HEADER_SIZE, name)
            if name in plan.names:
                written[name] = _write_disk(cast("DiskImage", content), member, options, progress, summary)
            else:
                _write_file(content, member, progress)
            digests.append(member.digest)
            summary.written += member.size
            sink.write_at(at, (tar_header(name, member.size, mtime),))
            at += _HEADER_SIZE + member.size
            sink.write_at(at, (padding(member.size),))
            at += len(padding(member.size))
    # Blanks after the last element make it as long as was planned.
    ovf = plan.descriptor([written[name] for name in plan.names])
    ovf += b"\n".rjust(ovf_size - len(ovf), b" ") if len(ovf) < ovf_size else b""
    mf = plan.manifest([hashlib.sha256(ovf).hexdigest(), *digests])
    assert (len(ovf), len(mf)) == (ovf_size, mf_size)
    head = (
        tar_header(ovf_name, ovf_size, mtime), ovf, padding(ovf_size),
        tar_header(mf_name, mf_size, mtime), mf, padding(mf_size),
    )  # fmt: skip
    sink.write_at(0, head)
    end = archive_end(at)
    sink.write_at(at, (end,))
    summary.file_size = at + len(end)
    summary.written += sum(map(len, head))
    sink.set_size(summary.file_size)


def _write_disk(
    disk: DiskImage, member: "_MemberSink", options: WriteOptions, progress: Progress, summary: Summary
) -> WrittenDisk:
    counted = CountedDisk(disk)
    StreamOptimizedWriter().write(counted, member, replace(options, file_name=member.name, variant=VARIANT), progress)
    summary.read += counted.data
    return WrittenDisk(member.name, member.size, align_up(disk.size, SECTOR), counted.data)


def _write_file(source: ByteSource, member: "_MemberSink", progress: Progress) -> None:
    for offset in range(0, source.size, STEP):
        data = source.read_at(offset, min(STEP, source.size - offset))
        member.write(data)
        progress(len(data))


class _MemberSink:
    """Appends to a member of the archive, from a place in it, and digests what passes."""

    def __init__(self, sink: PositionedSink | ObjectSink, offset: int, name: str) -> None:
        self.name = name
        self.size = 0
        self._sink = sink
        self._offset = offset
        self._hash = hashlib.sha256(usedforsecurity=False)

    @property
    def digest(self) -> str:
        """SHA-256 of what was appended."""
        return self._hash.hexdigest()

    def write(self, data: Buffer, /) -> None:
        self._sink.write_at(self._offset + self.size, (data,))
        self._hash.update(data)
        self.size += len(data)

    def write_zeroes(self, length: int, /) -> None:
        for piece in zeroes(length):
            self.write(piece)

    def commit(self) -> None:
        """Nothing: the archive is published as a whole."""

    def abort(self) -> None:
        """Nothing: the archive is given up as a whole."""


def _through_temporary(plan: _Plan, pipe: PipeSink, phase: Phase, summary: Summary) -> None:
    import tempfile  # noqa: PLC0415 - for pipes alone

    with tempfile.TemporaryDirectory(prefix="diskfs-") as folder:
        sink = FileSink(Path(folder) / "appliance.ova")
        try:
            _write(plan, sink, phase, summary)
            with contextlib.closing(RawDriver().open(open_file(sink.partial), NoRelatedFiles())) as whole:
                with phase("sending", whole.size) as progress:
                    copy_disk(whole, pipe, progress, threads=1)
        finally:
            sink.abort()


def _largest(plan: _Plan) -> int:
    """Return what the archive is not larger than, in bytes."""
    sizes = [
        largest_stream(content.size) if name in plan.names else content.size + _HEADER_SIZE
        for name, content in plan.members
    ]
    return plan.descriptor_space() + sum(sizes) + STREAM_TABLES


def _verify(plan: _Plan, sink: Target, phase: Phase) -> None:
    """Read back every disk, and compare every digest."""
    source: LocatedSource
    if isinstance(sink, ObjectSink):
        source = open_written(sink, plan.job)
    else:
        assert isinstance(sink, FileSink)
        sink.flush()
        source = open_file(sink.partial)
        drop_cached(source)
    with contextlib.ExitStack() as stack:
        stack.callback(source.close)
        appliance = open_ova(source)
        for finding in appliance.verify():
            if finding.severity is Severity.ERROR:
                raise CorruptImage(f"{printable(plan.job.target)}: what was written is not sound: {finding.message}")
        images = {disk.file_name: disk for disk in appliance.disks}
        for name, disk in zip(plan.names, plan.disks, strict=True):
            require_same(disk, open_image(images[name].open()), plan.job, phase, stack)


def _as_stored(appliance: Appliance, file: OvfFile) -> Iterator[tuple[str, ByteSource]]:
    """Yield what the appliance has of a file, in one piece or in chunks, by the names that its href makes of them."""
    members = dict(appliance.members)
    name = str(PurePosixPath(appliance.descriptor_name).parent / file.href)
    if name in members:
        yield file.href, members[name]
        return
    number = 0
    while (chunk := chunk_name(name, number)) in members:
        yield chunk_name(file.href, number), members[chunk]
        number += 1


def _safe_stem(stem: str) -> str:
    """Return a name that needs no escape in a tar, a URI, XML and a manifest."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.")
    return safe[:MAX_STEM] or "appliance"


def _disk_name(href: str) -> str:
    return _safe_stem(_DISK_SUFFIX.sub("", PurePosixPath(unquote(href)).name)) + ".vmdk"


def _unique(name: str, taken: set[str]) -> str:
    stem = name.removesuffix(".vmdk")
    number = 1
    while name.lower() in taken:
        number += 1
        name = f"{stem}-{number}.vmdk"
    taken.add(name.lower())
    return name


def kept_descriptor(appliance: Appliance, disk_count: int) -> ApplianceSource:
    """Say that an appliance's descriptor is to be kept; raises UnsupportedFeature if its disks cannot all be told."""
    files = []
    for disk in appliance.descriptor.disk_order():
        file = appliance.descriptor.file_of(disk)
        if file is None:
            raise UnsupportedFeature(f"{appliance.name}: disk {printable(disk.disk_id, 80)!r} has no file; use --disk")
        files.append(file)
    assert len(files) == disk_count
    return ApplianceSource(appliance, tuple(files))
