"""What firmware would find on the disks: boot code, EFI system partitions, loaders, and thereby which modes fit."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from diskfs.disks.opening import OpenedDisk
from diskfs.guest.files import Volume
from diskfs.preflight.boot.boot_code import SECTOR, BootCode, identify_boot_code, read_boot_code
from diskfs.preflight.boot.efi import ESP_GUID, ESP_MBR_TYPE, EfiPartition, read_efi_partition
from diskfs.preflight.boot.grub_files import GrubFile, find_grub_files
from diskfs_formats.errors import DiskfsError
from diskfs_formats.partitions import Partition, PartitionTable

BIOS_BOOT_GUID = UUID("21686148-6449-6e6f-744e-656564454649")

Mode = Literal["legacy-bios", "uefi"]


@dataclass(frozen=True, slots=True)
class DiskBoot:
    """One disk as a BIOS sees it. `table` is None for a disk without partitions."""

    index: int
    name: str
    table: PartitionTable | None
    boot_code: BootCode
    active: tuple[Partition, ...]
    active_code: tuple[str, ...]
    """What the first sector of each active partition is."""
    bios_boot: Partition | None

    @property
    def bios_reason(self) -> str:
        """Why a BIOS can start this disk, empty if it cannot."""
        code = self.boot_code
        if code.is_grub and code.has_next:
            return f"disk {self.index}: the MBR has GRUB, whose next part is at sector {code.next_sector}"
        if code.kind in {"lilo", "syslinux"}:
            return f"disk {self.index}: the MBR has {code.kind.upper()}"
        for partition, kind in zip(self.active, self.active_code, strict=True):
            if code.starts_active and kind:
                return f"disk {self.index}: the MBR starts the active partition {partition.number}, which has boot code"
        return ""


class BootFacts:
    """The facts about starting the machine, over all its disks."""

    def __init__(self, disks: Sequence[OpenedDisk], volumes: Sequence[Volume], boot_mode: str | None) -> None:
        self._disks = disks
        self._volumes = volumes
        self._boot_mode = boot_mode

    @functools.cached_property
    def disks(self) -> tuple[DiskBoot, ...]:
        """The disks that could be opened."""
        return tuple(_disk_boot(disk) for disk in self._disks if disk.opened is not None)

    @functools.cached_property
    def efi_partitions(self) -> tuple[EfiPartition, ...]:
        """The EFI system partitions of all disks, by the type in the partition table."""
        found = []
        for volume in self._volumes:
            partition = self._partition(volume)
            if partition is not None and partition.type_id in {ESP_GUID, ESP_MBR_TYPE}:
                found.append(read_efi_partition(volume))
        return tuple(found)

    @functools.cached_property
    def bios_reason(self) -> str:
        """Why a BIOS can start one of the disks, empty if it cannot."""
        return next((disk.bios_reason for disk in self.disks if disk.bios_reason), "")

    @functools.cached_property
    def uefi_reason(self) -> str:
        """Why UEFI firmware can start it: a loader for x86-64 on an EFI system partition; empty if it cannot."""
        for partition in self.efi_partitions:
            if partition.loaders:
                loader = partition.fallback or partition.loaders[0]
                return f"{loader.path} on {partition.volume.name}"
        return ""

    @property
    def fits(self) -> frozenset[Mode]:
        """The boot modes that the disks fit."""
        modes: set[Mode] = set()
        if self.bios_reason:
            modes.add("legacy-bios")
        if self.uefi_reason:
            modes.add("uefi")
        return frozenset(modes)

    @property
    def predicted_mode(self) -> Mode | None:
        """The mode a Linux guest will be started in: the request's, else the only one that fits, else legacy BIOS.

        The guide gives no rule for Linux; legacy BIOS is what the service has always done. None if nothing fits.
        """
        if self._boot_mode == "uefi":
            return "uefi"
        if self._boot_mode == "legacy-bios" or "legacy-bios" in self.fits:
            return "legacy-bios"
        return "uefi" if "uefi" in self.fits else None

    @property
    def likely_platform(self) -> str:
        """What GRUB's $grub_platform will be: `efi` where UEFI alone fits or is asked for, else `pc`."""
        try:
            return "efi" if self.predicted_mode == "uefi" else "pc"
        except DiskfsError:
            return "pc"

    @functools.cached_property
    def boot_disk(self) -> int | None:
        """The number of the disk that firmware starts, None if no disk can be started."""
        if self.predicted_mode == "uefi":
            return next((one.volume.disk_index for one in self.efi_partitions if one.loaders), None)
        return next((disk.index for disk in self.disks if disk.bios_reason), None)

    @functools.cached_property
    def grub_files(self) -> list[GrubFile]:
        """Every configuration of GRUB on the disks."""
        return find_grub_files(self._volumes)

    def _partition(self, volume: Volume) -> Partition | None:
        if volume.partition is None or ":" in volume.name:
            return None
        disk = next((one for one in self.disks if one.index == volume.disk_index), None)
        if disk is None or disk.table is None:
            return None
        return next((one for one in disk.table.partitions if one.number == volume.partition), None)


def _disk_boot(disk: OpenedDisk) -> DiskBoot:
    table = disk.partitions[0]
    partitions = table.partitions if table else ()
    active = tuple(one for one in partitions if one.bootable and one.size and one.offset + SECTOR <= disk.image.size)
    codes = tuple(identify_boot_code(disk.image.read_at(one.offset, SECTOR)) for one in active)
    bios_boot = next((one for one in partitions if one.type_id == BIOS_BOOT_GUID), None)
    return DiskBoot(disk.index, disk.file_name, table, read_boot_code(disk.image), active, codes, bios_boot)
