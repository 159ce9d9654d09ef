"""What lies where on the disks, for the report: disks, their partitions, and the file systems and volumes in them."""

from typing import Any

from diskfs.disks.opening import OpenedDisk
from diskfs.preflight.container import DiskFile
from diskfs.preflight.facts import Facts
from diskfs_formats.errors import DiskfsError

MAX_PARTITIONS = 1024
"""Partitions of a disk that are described."""


def describe_disks(facts: Facts) -> list[dict[str, Any]]:
    """Describe each disk with its partitions; what cannot be read has its `error`."""
    volumes = _volumes(facts)
    return [_describe(file, volumes) for file in facts.files]


def _volumes(facts: Facts) -> list[dict[str, Any]]:
    try:
        return [
            {
                "name": volume.name,
                "disk": volume.disk_index,
                "partition": volume.partition,
                "offset": volume.offset,
                "size": volume.size,
                "filesystem": volume.filesystem,
                "label": volume.files.label if volume.files is not None else "",
                "free": volume.files.free if volume.files is not None else None,
                "problem": volume.problem,
            }
            for volume in facts.volumes
        ]
    except DiskfsError:
        return []


def _describe(file: DiskFile, volumes: list[dict[str, Any]]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "index": file.index,
        "name": file.name,
        "format": _or_empty(file),
        "variant": file.disk.opened.info.variant if file.disk is not None and file.disk.opened is not None else "",
        "virtual_size": file.virtual_size,
        "scheme": None,
        "partitions": [],
        "volumes": [
            {key: value for key, value in volume.items() if key != "disk"}
            for volume in volumes
            if volume["disk"] == file.index
        ],
    }
    if file.problem is not None:
        described["error"] = str(file.problem)
    elif file.disk is not None:
        _add_partitions(described, file.disk)
    return described


def _or_empty(file: DiskFile) -> str:
    try:
        return file.format
    except DiskfsError:
        return ""


def _add_partitions(described: dict[str, Any], disk: OpenedDisk) -> None:
    table, findings = disk.partitions
    described["findings"] = [finding.message for finding in findings]
    if table is None:
        return
    described["scheme"] = table.scheme
    described["partitions"] = [
        {
            "number": partition.number,
            "offset": partition.offset,
            "size": partition.size,
            "type": partition.type_text,
            "name": partition.name,
            "is_container": partition.is_container,
        }
        for partition in table.partitions[:MAX_PARTITIONS]
    ]
