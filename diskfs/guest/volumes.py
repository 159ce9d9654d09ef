"""The volumes of a source and the files in them: partitions, whole disks and LVM's logical volumes.

Nothing is mounted, no loop device is made and nothing is copied: the bytes come through the map of each disk, and a
child process without rights makes sense of them.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Self, overload
from uuid import UUID

from diskfs.disks.opening import OpenedDisk, OpenedSource
from diskfs.disks.partitions import partition_slices
from diskfs.guest.child import ReadingChild
from diskfs.guest.child_files import ChildFiles
from diskfs.guest.files import GuestFiles, Volume
from diskfs.guest.filesystems import identify_filesystem
from diskfs.guest.readers.device import Segment
from diskfs.guest.serving import READERS
from diskfs_formats.errors import DiskfsError
from diskfs_formats.source import ByteSource, ConcatenatedSource, MemorySource, SourceSlice
from diskfs_formats.text import printable

MAX_VOLUMES = 512
"""Volumes of one source; a table may list 1024 partitions on each of 4096 disks."""

PROBLEMS = {
    "crypto_LUKS": "it is encrypted with LUKS",
    "BitLocker": "it is encrypted with BitLocker",
    "linux_raid_member": "it is a member of a Linux software RAID, which is not read",
    "ReFS": "ReFS is not read",
    "jfs": "JFS is recognised and not read",
    "reiserfs": "ReiserFS is recognised and not read",
}
"""Why a volume has no files, by the file system's name."""

NO_FILES = frozenset({"swap", "swsuspend", "LVM2_member", "jbd"})
"""What holds no files and is no problem."""

DYNAMIC_DISK_TYPES = frozenset(
    {0x42, UUID("5808c8aa-7e8f-42e0-85d2-e1e90434cfb3"), UUID("af9b60a0-1431-4f62-bc68-3311714a69ad")}
)
STORAGE_SPACES_TYPE = UUID("e75caf8f-f680-4cee-afa3-b001e56efc2d")


class Volumes(Sequence[Volume]):
    """What `volumes` found, in the order of disks and partitions. Close it when done: that ends the reading child."""

    def __init__(self, found: Sequence[Volume], child: ReadingChild) -> None:
        self._found = tuple(found)
        self._child = child

    @overload
    def __getitem__(self, index: int) -> Volume: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Volume]: ...
    def __getitem__(self, index: int | slice) -> Volume | Sequence[Volume]:
        return self._found[index]

    def __len__(self) -> int:
        return len(self._found)

    @property
    def files(self) -> Iterator[GuestFiles]:
        """The file systems that can be read."""
        return (volume.files for volume in self._found if volume.files is not None)

    def close(self) -> None:
        """End the child; what it opened raises GuestError from now on. Closing twice is harmless."""
        self._child.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def volumes(source: OpenedSource, *, child: ReadingChild | None = None) -> Volumes:
    """Find the volumes of all disks of `source`, which must stay open as long.

    What cannot be read is a volume with its `problem`, not an error; a disk that could not be opened is one volume
    of no size. Costs the partition tables, the start of each volume, and its superblocks. `child` is for tests.
    """
    child = child or ReadingChild([disk.opened or MemorySource(b"") for disk in source.disks])
    try:
        return Volumes(_Search(child).found(source), child)
    except BaseException:
        child.close()
        raise


class _Search:
    def __init__(self, child: ReadingChild) -> None:
        self._child = child
        self._count = 0
        self._members: list[tuple[Volume, ByteSource]] = []

    def found(self, source: OpenedSource) -> list[Volume]:
        found: list[Volume] = []
        for disk in source.disks:
            for volume in self._of_disk(disk):
                if len(found) >= MAX_VOLUMES:
                    break
                found.append(volume)
        if self._members:
            found += self._logical_volumes()[: MAX_VOLUMES - len(found)]
        return found

    def _of_disk(self, disk: OpenedDisk) -> Iterator[Volume]:
        name = f"disk{disk.index}"
        if disk.opened is None:
            yield Volume(name, disk.index, None, 0, 0, None, None, str(disk.error))
            return
        table, findings = disk.partitions
        if table is None or not table.partitions:
            if table is None and findings:
                yield Volume(name, disk.index, None, 0, disk.opened.size, None, None, findings[0].message)
                return
            yield from self._volumes(name, disk.index, None, disk.opened, [(disk.index, 0, disk.opened.size)])
            return
        slices = {partition.number: part for partition, part in partition_slices(disk.opened, table, name)}
        for partition in table.partitions:
            part = slices.get(partition.number)
            if part is None:
                continue
            segments = [(disk.index, partition.offset, part.size)]
            if partition.type_id in DYNAMIC_DISK_TYPES or partition.type_id == STORAGE_SPACES_TYPE:
                what = "Storage Spaces" if partition.type_id == STORAGE_SPACES_TYPE else "a Windows dynamic disk"
                yield Volume(
                    part.name,
                    disk.index,
                    partition.number,
                    partition.offset,
                    part.size,
                    None,
                    None,
                    f"it belongs to {what}, which is not read",
                )
                continue
            yield from self._volumes(part.name, disk.index, partition.number, part, segments)

    def _volumes(
        self, name: str, disk_index: int, number: int | None, source: ByteSource, segments: Sequence[Segment]
    ) -> Iterator[Volume]:
        """Yield the volume, and behind a Btrfs those of its other subvolumes that hold a system."""
        offset = segments[0][1] if segments else 0
        plain = Volume(name, disk_index, number, offset, source.size, None)
        try:
            kind = identify_filesystem(source)
        except DiskfsError as error:
            yield dataclasses.replace(plain, problem=str(error))
            return
        plain = dataclasses.replace(plain, filesystem=kind)
        if kind == "LVM2_member":
            self._members.append((plain, source))
        if kind is None or kind not in READERS:
            problem = (
                "" if kind is None or kind in NO_FILES else PROBLEMS.get(kind, f"{kind} is recognised and not read")
            )
            yield dataclasses.replace(plain, problem=problem)
            return
        files = self._opened(plain, kind, segments)
        yield files
        if kind == "btrfs" and isinstance(files.files, ChildFiles):
            try:
                systems = files.files.systems()
            except DiskfsError:
                return  # what is damaged is met again by whoever reads it
            for subvolume, path in systems:
                yield self._opened(
                    dataclasses.replace(plain, name=f"{name}:{printable(path) or '/'}"), kind, segments, subvolume
                )

    def _opened(self, plain: Volume, kind: str, segments: Sequence[Segment], subvolume: int | None = None) -> Volume:
        self._count += 1
        try:
            files = ChildFiles(self._child, self._count, plain.name, kind, segments, subvolume)
        except DiskfsError as error:
            return dataclasses.replace(plain, problem=str(error))
        return dataclasses.replace(plain, files=files)

    def _logical_volumes(self) -> list[Volume]:
        members = [[[member.disk_index, member.offset, member.size]] for member, _ in self._members]
        try:
            answer, _, _ = self._child.request("LVM", {"do": "lvm", "members": members})
            return [volume for described in answer["groups"] for volume in self._logical_volume(described)]
        except (DiskfsError, LookupError, TypeError, ValueError) as error:
            first = self._members[0][0]
            reason = str(error) if isinstance(error, DiskfsError) else "the answer about them makes no sense"
            return [
                dataclasses.replace(
                    first, name=f"{first.name}:lvm", filesystem=None, problem=f"logical volumes: {reason}"
                )
            ]

    def _logical_volume(self, described: dict[str, Any]) -> list[Volume]:
        """Make a volume of what the child says of one, whose segments are checked against their members."""
        label = printable(str(described["name"]))
        segments: list[Segment] = []
        pieces: list[ByteSource] = []
        for member_index, offset, length in described["segments"]:
            if not all(type(value) is int for value in (member_index, offset, length)) or length <= 0 or offset < 0:
                raise ValueError("segment")
            member, bytes_of_it = self._members[member_index if member_index >= 0 else len(self._members)]
            pieces.append(SourceSlice(bytes_of_it, offset, length, label))
            segments.append((member.disk_index, member.offset + offset, length))
        first = self._members[int(described["first"])][0]
        name = f"{first.name}:{label}"
        plain = Volume(
            name, first.disk_index, first.partition, segments[0][1] if segments else 0, int(described["size"]), None
        )
        if described["problem"]:
            return [dataclasses.replace(plain, problem=printable(str(described["problem"])))]
        return list(self._volumes(name, first.disk_index, first.partition, ConcatenatedSource(pieces, name), segments))
