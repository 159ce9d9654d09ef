"""VMIE-FS: partition tables and file systems, as far as the disks show them."""

from collections.abc import Iterator

from diskfs.guest.files import Volume
from diskfs.preflight.facts import Facts
from diskfs.preflight.rules.outcome import Outcome, failed, not_applicable, passed, unknown
from diskfs.preflight.rules.registry import check
from diskfs_formats.findings import Severity
from diskfs_formats.partitions import Partition

LINUX_FILESYSTEMS = frozenset({"ext2", "ext3", "ext4", "btrfs", "jfs", "xfs"})
NOT_FOR_FILES = frozenset({"swap", "swsuspend", "vfat", "LVM2_member", "jbd", "crypto_LUKS", "BitLocker"})
"""What a partition may hold besides: swap, the EFI system partition, LVM's volumes, and what VMIE-GEN-03 is about."""
ESP_TYPES = frozenset({"0xef", "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"})
STORAGE_SPACES_TYPE = "e75caf8f-f680-4cee-afa3-b001e56efc2d"


@check("VMIE-FS-01", any_guest=True)
def linux_filesystems(facts: Facts) -> Iterator[Outcome]:
    """Every partition and logical volume holds ext2, ext3, ext4, Btrfs, JFS or XFS, or no file system in this sense:
    swap, FAT, LVM. The partition tables are MBR or GPT.
    """
    if "windows" in facts.guests and "linux" not in facts.guests:
        yield not_applicable("the system is Windows")
        return
    for volume in facts.volumes:
        kind = volume.filesystem
        if kind in LINUX_FILESYSTEMS:
            yield passed(f"{volume.name} is {kind}")
        elif kind is not None and kind not in NOT_FOR_FILES:
            yield failed(f"{volume.name}, at offset {volume.offset:#x} of disk{volume.disk_index}, is {kind}")
        elif kind is None and volume.problem:
            yield unknown(f"{volume.name}: {volume.problem}")
    for disk, table in facts.partition_tables:
        if table is not None:
            yield passed(f"disk{disk.index} is partitioned with {table.scheme.upper()}")


@check("VMIE-FS-03")
def no_btrfs_subvolumes(facts: Facts) -> Iterator[Outcome]:
    """The Btrfs has no subvolumes and its default one is the top level; neither fstab nor the kernel's options name
    one.
    """
    linux = facts.linux
    assert linux is not None
    btrfs = [volume for volume in facts.volumes if volume.filesystem == "btrfs"]
    if not btrfs:
        yield not_applicable("no file system is Btrfs")
        return
    if linux.root.subvolume:
        yield failed(f"the system is in the subvolume {linux.root.subvolume} of {linux.root_volume.name}")
    for volume in btrfs:
        if volume.files is not None and "subvolumes" in volume.files.state:
            yield failed(f"{volume.name} has subvolumes")
    for entry in linux.fstab.entries if linux.fstab is not None else ():
        named = [option for option in entry.option_list if option.startswith(("subvol=", "subvolid="))]
        if entry.vfstype == "btrfs" and any(option not in {"subvol=/", "subvolid=5"} for option in named):
            yield failed(f"/etc/fstab:{entry.line}: {entry.file} has {','.join(named)}")
    command_line = linux.command_line
    if command_line is not None and "subvol" in command_line[0]:
        option = next(word for word in command_line[0].split() if "subvol" in word)
        yield failed(f"{command_line[1]}: {option}")


@check("VMIE-FS-04")
def windows_filesystems(facts: Facts) -> Iterator[Outcome]:
    """Every partition that is no EFI system partition holds NTFS or nothing known, and none has the type of Storage
    Spaces.
    """
    for volume in facts.volumes:
        partition = _partition(facts, volume)
        is_esp = partition is not None and partition.type_text in ESP_TYPES
        if volume.filesystem == "ntfs":
            yield passed(f"{volume.name} is NTFS")
        elif volume.filesystem in {"vfat", "exfat"} and not is_esp:
            yield failed(
                f"{volume.name}, at offset {volume.offset:#x} of disk{volume.disk_index}, is {volume.filesystem}",
                severity=Severity.WARNING,
            )
        elif volume.filesystem not in {None, "vfat", "BitLocker"}:
            yield failed(
                f"{volume.name}, at offset {volume.offset:#x} of disk{volume.disk_index}, is {volume.filesystem}"
            )
    for disk, table in facts.partition_tables:
        for partition in table.partitions if table is not None else ():
            if partition.type_text == STORAGE_SPACES_TYPE:
                yield failed(f"disk{disk.index}, partition {partition.number} belongs to Storage Spaces")


@check("VMIE-FS-06")
def root_is_on_mbr(facts: Facts) -> Iterator[Outcome]:
    """The disk that holds the system, or the first disk where none was found, has no GPT."""
    index = root_disk(facts)
    where = "the system" if index is not None else "no system was found; the first disk"
    tables = facts.partition_tables
    for disk, table in tables:
        if disk.index != (index or 0):
            continue
        if table is None:
            yield failed(f"disk{disk.index} ({where}) has no partition table")
        elif table.scheme == "gpt":
            offset = table.sector_size
            yield failed(
                f"disk{disk.index} ({where}): GPT header at offset {offset:#x}",
                "use import-image, which takes GPT, or convert the disk to MBR",
            )
        else:
            yield passed(f"disk{disk.index} ({where}) has an MBR")


def root_disk(facts: Facts) -> int | None:
    """Return the number of the disk with the root file system or the system drive; None if no system was found."""
    if facts.linux is not None:
        return facts.linux.root_volume.disk_index
    if facts.windows is not None:
        return facts.windows.volume.disk_index
    return None


def _partition(facts: Facts, volume: Volume) -> Partition | None:
    for disk, table in facts.partition_tables:
        if table is not None and disk.index == volume.disk_index:
            return next((one for one in table.partitions if one.number == volume.partition), None)
    return None
