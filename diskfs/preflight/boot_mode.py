"""Which boot mode the imported system gets, by the guide's table of decisions.

VMIE-BOOT-02 to -05 and the ambiguities A-02 to A-04 say where the table leaves something open.
"""

from dataclasses import dataclass
from uuid import UUID

from diskfs.preflight.facts import Facts
from diskfs_formats.partitions import PartitionTable

LIMIT = 2 << 40
"""Bytes: "less than 2 TB", taken as TiB."""
MAX_PRIMARY = 3
LDM_MBR_TYPE = 0x42
LDM_TYPES = frozenset({UUID("5808c8aa-7e8f-42e0-85d2-e1e90434cfb3"), UUID("af9b60a0-1431-4f62-bc68-3311714a69ad")})
"""Of the Logical Disk Manager: Windows dynamic disks."""


@dataclass(frozen=True, slots=True)
class BootMode:
    """The mode, None where the guide is silent, and why."""

    mode: str | None
    reason: str
    converts_gpt: bool = False
    """The boot volume's GPT becomes an MBR."""


def predict(facts: Facts) -> BootMode:
    """Predict the boot mode; raises DiskfsError if the disks cannot be read."""
    asked = facts.request.boot_mode
    if asked is not None:
        return BootMode(asked, "--boot-mode says so")
    fits = facts.boot.fits
    if not fits:
        return BootMode(None, "no disk can be started")
    if len(fits) == 1:
        mode = next(iter(fits))
        why = facts.boot.uefi_reason if mode == "uefi" else facts.boot.bios_reason
        return BootMode(mode, f"the only mode that fits: {why}")
    if "windows" not in facts.guests:
        return BootMode(
            facts.boot.predicted_mode, "both modes fit, and the guide has no rule for Linux: give --boot-mode"
        )
    unmet = unmet_criteria(facts)
    if unmet:
        return BootMode(None, f"both modes fit, and {unmet[0]}, for which the guide has no rule: give --boot-mode")
    table = boot_table(facts)
    converts = table is not None and table.scheme == "gpt"
    return BootMode("legacy-bios", "both modes fit, and legacy BIOS is the default", converts_gpt=converts)


def unmet_criteria(facts: Facts) -> list[str]:
    """Return which conditions for legacy BIOS as the default of a Windows system are not met (VMIE-BOOT-03)."""
    index = facts.boot.boot_disk or 0
    file = facts.files[index]
    unmet = []
    if file.format != "vhdx":
        unmet.append(f"the format is {file.format}, not VHDX")
    if (file.virtual_size or 0) >= LIMIT:
        unmet.append(f"the disk has {file.virtual_size} bytes, 2 TiB or more")
    table = boot_table(facts)
    count = primary_partitions(table)
    if count > MAX_PRIMARY:
        unmet.append(f"the disk has {count} primary partitions")
    if is_dynamic(table):
        unmet.append("the disk is a Windows dynamic disk")
    return unmet


def boot_table(facts: Facts) -> PartitionTable | None:
    """Return the partition table of the disk that is started."""
    index = facts.boot.boot_disk or 0
    return next((table for disk, table in facts.partition_tables if disk.index == index), None)


def primary_partitions(table: PartitionTable | None) -> int:
    """Count primary partitions: the entries of a GPT, or the first four of an MBR."""
    if table is None:
        return 0
    return sum(1 for one in table.partitions if table.scheme == "gpt" or one.number <= 4)


def is_dynamic(table: PartitionTable | None) -> bool:
    """Tell whether the disk is one of the Logical Disk Manager, by the types of its partitions."""
    return table is not None and any(
        one.type_id == LDM_MBR_TYPE or one.type_id in LDM_TYPES for one in table.partitions
    )
