"""From a location to disks: a single image, or an appliance with several."""

import contextlib
import functools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from diskfs_formats.partitions import read_partition_table

if TYPE_CHECKING:
    from diskfs_formats.ova import Appliance
    from diskfs_formats.ova_disks import ApplianceDisk
    from diskfs_formats.partitions import PartitionTable

from diskfs.disks.appliance_files import ApplianceFiles
from diskfs.sources.file import FileSource
from diskfs.sources.locate import BesideFiles, LocatedSource, files_beside, open_location
from diskfs.sources.locations import RemoteOptions, file_name, shown
from diskfs_formats.driver import DiskImage, FormatDriver, NoRelatedFiles, ProbeWindow, RelatedFiles
from diskfs_formats.errors import CorruptImage, DiskfsError, ImageError, UnknownFormat, UnsupportedFeature
from diskfs_formats.findings import Finding, Severity
from diskfs_formats.registry import detect, driver_named
from diskfs_formats.source import ByteSource
from diskfs_formats.text import printable

CONTAINERS = ("ova", "ovf")
"""What `--format` takes besides the names of the drivers."""
STREAM_OPTIMIZED = "#streamoptimized"
"""How the URI of that format ends. Other URIs say less: oVirt calls every image a sparse VMDK."""


@dataclass
class OpenedDisk:
    """One disk of a source. `image` raises the error that opening it met, so that one bad disk hides no other."""

    index: int
    id: str
    file_name: str
    file_size: int
    driver: FormatDriver | None = None
    opened: DiskImage | None = None
    error: DiskfsError | None = None
    findings: tuple[Finding, ...] = ()
    stored: ByteSource | None = None
    related: RelatedFiles = field(default_factory=NoRelatedFiles)
    table_sector_size: int | None = None
    """What the partition table counts in, where the device tells; None to find out from the table."""
    shown_instead: DiskImage | None = None
    """The disk as it is in the source, where another is shown in its place."""

    @property
    def image(self) -> DiskImage:
        """The disk; raises the DiskfsError for which it could not be opened."""
        if self.opened is None:
            assert self.error is not None
            raise self.error
        return self.opened

    def replace(self, image: DiskImage) -> None:
        """Show `image` in the disk's place: the same disk with changes. Whoever opened it closes it, and first."""
        self.shown_instead, self.opened = self.opened, image
        self.__dict__.pop("partition_table", None)
        self.__dict__.pop("partitions", None)

    @functools.cached_property
    def partition_table(self) -> "PartitionTable | None":
        """The disk's partition table, read once; None if it has none. Raises what reading the first sector raises."""
        return read_partition_table(self.image, sector_size=self.table_sector_size)

    @functools.cached_property
    def partitions(self) -> "tuple[PartitionTable | None, tuple[Finding, ...]]":
        """The partition table and what was noticed about it; a first sector that cannot be read is a finding."""
        try:
            table = self.partition_table
        except DiskfsError as error:
            return None, (Finding("partition-table-unreadable", Severity.ERROR, str(error), "run diskfs verify"),)
        return table, table.findings if table else ()

    def check(self) -> Iterator[Finding]:
        """Examine every structure and stored unit of the image."""
        if self.driver is None or self.stored is None:
            raise self.error or ImageError(f"{self.file_name}: it cannot be opened")
        yield from self.findings
        yield from self.driver.check(self.stored, self.related)


class OpenedSource:
    """What a location holds: its disks and, for an appliance, its members. Close it when done."""

    def __init__(
        self, location: str, source: LocatedSource, disks: Sequence[OpenedDisk], appliance: "Appliance | None"
    ) -> None:
        self.location = shown(location)
        self.disks = tuple(disks)
        self.appliance = appliance
        self._source = source

    @property
    def container(self) -> str | None:
        """`ova`, `ovf`, or None for a single image."""
        return self.appliance.container if self.appliance else None

    @property
    def name(self) -> str:
        """The file's own name, without its folder."""
        return file_name(self.location)

    @property
    def status(self) -> os.stat_result:
        """The file's status when it was opened."""
        return self._source.status

    @property
    def stored(self) -> LocatedSource:
        """The file itself."""
        return self._source

    @property
    def members(self) -> Sequence[tuple[str, ByteSource]]:
        """The files as they are: an appliance's members, or the image itself."""
        return self.appliance.members if self.appliance else [(self.name, self._source)]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What was noticed about the source as a whole."""
        return self.appliance.findings if self.appliance else ()

    def disk(self, index: int) -> OpenedDisk:
        """Return one disk; raises UnknownFormat if the source has no such disk."""
        if not 0 <= index < len(self.disks):
            raise UnknownFormat(f"{self._source.name}: there is no disk {index}; it has {len(self.disks)}, from 0")
        return self.disks[index]

    def require_a_disk(self) -> None:
        """Raise unless at least one disk could be opened: the first error, or that there is none."""
        if not self.disks:
            raise UnknownFormat(f"{self._source.name}: the appliance has no disk with a file")
        if all(disk.error for disk in self.disks):
            raise self.disks[0].error  # type: ignore[misc]  # all() has just seen it

    def close(self) -> None:
        """Close every disk and the file."""
        for disk in self.disks:
            for image in (disk.opened, disk.shown_instead):
                if image is not None:
                    image.close()
        if self.appliance is not None:
            self.appliance.close()
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_source(
    location: str,
    *,
    format_name: str | None = None,
    parents: Sequence[str] = (),
    allow_missing_parent: bool = False,
    remote: RemoteOptions | None = None,
) -> OpenedSource:
    """Open a path or URL: an appliance with all its disks, or one image.

    `format_name` states the format instead of detecting it, `parents` the files of its parents, nearest first,
    instead of looking beside the image for the names it gives; with `allow_missing_parent` one that is not there reads
    as zero. `remote` says how URLs are reached. Raises DiskfsError; a disk of an appliance that cannot
    be opened keeps its error in its own place instead.
    """
    source = open_location(location, remote)
    try:
        related = files_beside(source, [source], parents, allow_missing=allow_missing_parent, options=remote)
        window = ProbeWindow.of(source)
        name = format_name or detect(window, source.name, list(_containers(window)))
        if name in CONTAINERS:
            return _opened_appliance(location, source, related, name, allow_missing=allow_missing_parent)
        driver = driver_named(name)
        disk = OpenedDisk(0, "", file_name(location), source.size, driver, stored=source, related=related)
        disk.opened = driver.open(source, related)
        if name == "raw" and isinstance(source, FileSource):
            disk.table_sector_size = source.device_sector_size
        return OpenedSource(location, source, [disk], None)
    except BaseException:
        source.close()
        raise


def _containers(window: ProbeWindow) -> Iterator[str]:
    # Every tar header has its checksum in octal digits here; the rest is looked at by the module that knows.
    checksum = window.head[148:156].strip(b" \0")
    if checksum and not checksum.strip(b"01234567"):
        from diskfs_formats.tar import is_tar  # noqa: PLC0415 - slow to load

        if is_tar(window.head):
            yield "ova"
    head = window.head[:4096]
    # The start tag of the root element, in UTF-8 or UTF-16; the namespace tells an OVF from other XML.
    text = head.replace(b"\0", b"")
    if text.lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n").startswith(b"<") and b"Envelope" in text and b"/ovf/" in text:
        yield "ovf"


def _opened_appliance(
    location: str, source: LocatedSource, related: BesideFiles, container: str, *, allow_missing: bool
) -> OpenedSource:
    # Loaded here: the XML parser is slow to load, and a single image needs none of it.
    from diskfs_formats.ova import open_ova, open_ovf  # noqa: PLC0415

    appliance = open_ova(source) if container == "ova" else open_ovf(source, related, file_name(location))
    beside = related if container == "ovf" else None
    sizes = {name: member.size for name, member in appliance.members}
    disks = []
    for disk in appliance.disks:
        files = ApplianceFiles(appliance, disk.file_name, disk.parent_ref, beside=beside, allow_missing=allow_missing)
        disks.append(_opened_disk(disk, sizes.get(disk.file_name), files))
    return OpenedSource(location, source, disks, appliance)


def _opened_disk(described: "ApplianceDisk", member_size: int | None, related: ApplianceFiles) -> OpenedDisk:
    disk = OpenedDisk(described.index, described.disk_id, described.file_name, member_size or 0, related=related)
    with contextlib.ExitStack() as undo:
        try:
            disk.stored = stored = described.open()
            undo.callback(stored.close)
            # A disk in chunks has no member of its own name: its size is that of all chunks.
            disk.file_size = stored.size if member_size is None else member_size
            disk.findings = described.findings
            format_name = detect(ProbeWindow.of(stored), stored.name)
            if format_name == "raw" and described.format_uri.lower().endswith(STREAM_OPTIMIZED):
                raise CorruptImage(
                    f"{stored.name}: the descriptor says that it is a stream-optimized VMDK, and it does not begin as "
                    "one: its header is damaged, or the descriptor is wrong; take the file out of the appliance, and "
                    "open it with --format"
                )
            disk.driver = driver_named(format_name)
            disk.opened = disk.driver.open(stored, related)
            if described.parent_ref and not disk.opened.info.has_parent:
                raise UnsupportedFeature(
                    f"{stored.name}: the descriptor says that the disk is a delta of disk "
                    f"{printable(described.parent_ref)!r}, and the image has no link to a parent"
                )
            undo.pop_all()
        except DiskfsError as error:
            disk.opened = None
            disk.error = error
    return disk
