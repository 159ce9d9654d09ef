"""The drives of Windows: page file, files that it needs on others, hibernation, and free space."""

import functools
import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diskfs.guest.files import GuestFiles
from diskfs.preflight.windows.readings import SYSTEM, Reading, Registry

if TYPE_CHECKING:
    from diskfs_formats.partitions import Partition, PartitionTable

MEMORY = r"CurrentControlSet\Control\Session Manager\Memory Management"
DIRECTORY = r"CurrentControlSet\Services\NTDS\Parameters"
DIRECTORY_VALUES = ("DSA Database file", "Database log files path", "DSA Working Directory")
MOUNTED_DEVICES = "MountedDevices"
_GPT_PREFIX = b"DMIO:ID:"
HIBERNATION_MARKS = frozenset({b"hibr", b"HIBR"})
"""The signature of a hiberfil.sys that will be resumed from; `wake` and `rstr` have been."""


@dataclass(frozen=True, slots=True)
class PageFile:
    """One page file: sizes in MiB, None where Windows manages them."""

    path: str
    minimum: int | None
    maximum: int | None

    @property
    def is_fixed(self) -> bool:
        return self.minimum is not None and self.minimum > 0 and self.minimum == self.maximum

    @property
    def is_automatic(self) -> bool:
        """Whether Windows manages the page files of all drives."""
        return self.path.startswith("?:")

    def __str__(self) -> str:
        if self.minimum is None or (self.minimum, self.maximum) == (0, 0):
            return f"{self.path} (size managed by Windows)"
        return f"{self.path} ({self.minimum} to {self.maximum} MiB)"


class Storage:
    """What the registry and the files say of drives; methods raise what reading them raises."""

    def __init__(self, registry: Registry, files: GuestFiles) -> None:
        self._registry = registry
        self._files = files

    @property
    def page_file_setting(self) -> Reading:
        return self._registry.read(SYSTEM, MEMORY, "PagingFiles")

    @functools.cached_property
    def page_files(self) -> tuple[PageFile, ...]:
        """The page files that are set; none where there is no page file."""
        return tuple(_page_file(line) for line in self.page_file_setting.texts or ())

    @property
    def directory_files(self) -> Iterator[Reading]:
        """Where the files of Active Directory's database are; nothing without one."""
        if self._registry.has(SYSTEM, DIRECTORY):
            for name in DIRECTORY_VALUES:
                reading = self._registry.read(SYSTEM, DIRECTORY, name)
                if reading.text:
                    yield reading

    def partition_of(self, letter: str, tables: Sequence["PartitionTable | None"]) -> "Partition | None":
        """Return the partition that Windows knows by a drive letter, if it is on one of the disks."""
        reading = self._registry.read(SYSTEM, MOUNTED_DEVICES, rf"\DosDevices\{letter.upper()}:")
        data = b"" if reading.value is None else reading.value.data
        for table in tables:
            for partition in table.partitions if table is not None else ():
                if table is not None and _is_device(data, table, partition):
                    return partition
        return None

    @functools.cached_property
    def hibernated(self) -> str:
        """Why Windows would resume instead of starting (fast startup does so too); nothing if it would not."""
        entry = self._files.entry("/hiberfil.sys")
        if entry is None or entry.size < 4:
            return ""
        mark = self._files.open("/hiberfil.sys").read_at(0, 4)
        if mark not in HIBERNATION_MARKS:
            return ""
        return f"{self._files.volume}: /hiberfil.sys: signature {mark.decode()!r}: it is hibernated"

    @property
    def unclean(self) -> str:
        """Why the system drive was not taken out of use properly; nothing if it was."""
        if "unclean" in self._files.state:
            return f"{self._files.volume}: the NTFS volume is marked as in use ($Volume, dirty flag 0x0001)"
        return ""


def drive_of(path: str) -> str:
    """Return the drive letter of a Windows path, upper case, or nothing."""
    found = re.match(r"(?:\\\?\?\\)?([A-Za-z]):", path.strip('"'))
    return found[1].upper() if found else ""


def _page_file(line: str) -> PageFile:
    parts = line.rsplit(None, 2)
    if len(parts) == 3 and all(part.isdecimal() and len(part) < 10 for part in parts[1:]):
        return PageFile(parts[0], int(parts[1]), int(parts[2]))
    return PageFile(line.strip(), None, None)


def _is_device(data: bytes, table: "PartitionTable", partition: "Partition") -> bool:
    """Tell whether an entry of MountedDevices means a partition: disk signature and offset, or the partition's GUID."""
    if len(data) == 12:
        signature, offset = int.from_bytes(data[:4], "little"), int.from_bytes(data[4:], "little")
        return table.scheme == "mbr" and table.disk_id == f"{signature:#010x}" and partition.offset == offset
    if data.startswith(_GPT_PREFIX) and len(data) == len(_GPT_PREFIX) + 16:
        return partition.unique_id == uuid.UUID(bytes_le=data[len(_GPT_PREFIX) :])
    return False
