"""A source and its disks as the JSON that `info` prints and the mount shows (docs/schemas/info.schema.json)."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diskfs.disks.opening import OpenedDisk, OpenedSource
from diskfs.disks.partitions import partition_slices
from diskfs.guest.filesystems import identify_filesystem
from diskfs.sources.locations import is_url
from diskfs_formats.driver import DiskImage
from diskfs_formats.errors import DiskfsError
from diskfs_formats.findings import Finding
from diskfs_formats.mapped import MappedImage
from diskfs_formats.source import ByteSource

if TYPE_CHECKING:
    from diskfs_formats.partitions import PartitionTable


MAX_LOOKS = 512
"""Partitions of one source whose file systems are looked for; a table may list 1024 on each of 4096 disks."""


class FilesystemLooks:
    """How many more partitions of a source are looked into."""

    def __init__(self, left: int = MAX_LOOKS) -> None:
        self._left = left

    def identify(self, source: ByteSource) -> str | None:
        """Return the file system on `source`, or None if it has none, cannot be read, or was one too many."""
        if self._left <= 0:
            return None
        self._left -= 1
        try:
            return identify_filesystem(source)
        except DiskfsError:
            # A damaged or missing unit at the start of a partition: what is there is unknown, and the rest is told.
            return None


def describe_source(opened: OpenedSource) -> dict[str, Any]:
    """Describe a source and all its disks; reads partition tables and the starts of file systems."""
    looks = FilesystemLooks()
    return {
        "source": opened.location if is_url(opened.location) else str(Path(opened.location)),
        "container": opened.container,
        "disks": [describe_disk(disk, looks) for disk in opened.disks],
        "findings": [describe_finding(finding) for finding in opened.findings],
    }


def describe_disk(disk: OpenedDisk, looks: FilesystemLooks) -> dict[str, Any]:
    """Describe one disk; one that could not be opened has its `error` and nothing that would be a guess."""
    description: dict[str, Any] = {
        "index": disk.index,
        "id": disk.id,
        "name": disk.file_name,
        "format": disk.driver.name if disk.driver else None,
        "variant": None,
        "virtual_size": None,
        "file_size": disk.file_size,
        "sector_size": None,
        "parent": None,
        "chain": [],
        "partition_table": None,
        "filesystem": None,
        "findings": [describe_finding(finding) for finding in disk.findings],
    }
    if disk.opened is None:
        description["error"] = str(disk.error)
        return description
    info = disk.opened.info
    table, findings = disk.partitions
    chain = [_describe_link(image) for image in chain_of(disk.opened)]
    description.update(
        format=info.format,
        variant=info.variant,
        parent=chain[1]["name"] if len(chain) > 1 else None,
        chain=chain,
        virtual_size=info.virtual_size,
        sector_size=table.sector_size if table else info.sector_size,
        unit_size=info.unit_size,
        compressed=info.compressed,
        partition_table=_describe_table(disk, table, looks) if table else None,
        filesystem=None if table and table.partitions else looks.identify(disk.opened),
        findings=[describe_finding(finding) for finding in (*disk.findings, *info.findings, *findings)],
    )
    return description


def chain_of(image: DiskImage) -> Iterator[DiskImage]:
    """Yield an image and its parents, nearest first."""
    link: DiskImage | None = image
    while link is not None:
        yield link
        link = link.parent if isinstance(link, MappedImage) else None


def _describe_link(image: DiskImage) -> dict[str, Any]:
    info = image.info
    return {
        "name": Path(image.name).name,
        "format": info.format,
        "variant": info.variant,
        "virtual_size": info.virtual_size,
    }


def describe_finding(finding: Finding) -> dict[str, str]:
    """Describe one finding."""
    return {
        "rule": finding.rule,
        "severity": finding.severity.value,
        "message": finding.message,
        "remedy": finding.remedy,
    }


def _describe_table(disk: OpenedDisk, table: "PartitionTable", looks: FilesystemLooks) -> dict[str, Any]:
    slices = {partition.number: part for partition, part in partition_slices(disk.image, table, f"disk{disk.index}")}
    return {
        "scheme": table.scheme,
        "sector_size": table.sector_size,
        "id": table.disk_id,
        "partitions": [
            {
                "number": partition.number,
                "offset": partition.offset,
                "size": partition.size,
                "type": partition.type_text,
                "name": partition.name,
                "bootable": partition.bootable,
                "filesystem": looks.identify(slices[partition.number]) if partition.number in slices else None,
            }
            for partition in table.partitions
        ],
    }
