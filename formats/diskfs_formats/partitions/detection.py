"""Which partition table a disk has. The order is Linux's: without an MBR record of type 0xEE there is no GPT, whatever
is at LBA 1; with one, an MBR has no say. Unlike Linux, a GPT whose primary copy is damaged is read from its backup
without being asked to.
"""

import dataclasses

from diskfs_formats.binary import is_power_of_two
from diskfs_formats.errors import CorruptImage
from diskfs_formats.findings import Finding, Severity
from diskfs_formats.partitions.ends import DiskEnds
from diskfs_formats.partitions.gpt import has_signature, read_gpt
from diskfs_formats.partitions.mbr import GPT_PROTECTIVE, MBR_SIZE, Mbr, parse_mbr, read_mbr
from diskfs_formats.partitions.table import PartitionTable

SECTOR_SIZES = (512, 4096)


def detect_partition_table(ends: DiskEnds, sector_size: int | None) -> PartitionTable | None:
    """Do what `read_partition_table` says, for a disk that has the signature of an MBR."""
    if sector_size is not None and (sector_size < SECTOR_SIZES[0] or not is_power_of_two(sector_size)):
        raise ValueError(f"sector_size is {sector_size}, expected a power of two from 512")
    mbr = parse_mbr(ends.read(0, MBR_SIZE))
    if mbr is None:
        return None
    sector_sizes = SECTOR_SIZES if sector_size is None else (sector_size,)
    is_plausible = mbr.is_plausible(ends.size // sector_sizes[0])
    if mbr.is_protective:
        try:
            table = read_gpt(ends, sector_sizes)
        except CorruptImage as error:
            if not is_plausible:
                return None
            damage = Finding(
                "gpt-no-valid-header", Severity.ERROR, str(error), "restore the GPT with gdisk or testdisk"
            )
            return PartitionTable("gpt", sector_sizes[0], (), (damage,))
        return dataclasses.replace(table, findings=(*_protective_findings(ends, mbr), *table.findings))
    if not is_plausible:
        return None
    table = read_mbr(ends, mbr, sector_sizes[0])
    if has_signature(ends, sector_sizes):
        stale = Finding(
            "gpt-stale",
            Severity.WARNING,
            f"{ends.name}: a GPT header is at LBA 1, but the MBR has no entry of type {GPT_PROTECTIVE:#04x} that "
            "announces it: the MBR is used, as Linux does",
            "if the GPT is the wanted table, write a protective MBR with gdisk",
        )
        table = dataclasses.replace(table, findings=(stale, *table.findings))
    return table


def _protective_findings(ends: DiskEnds, mbr: Mbr) -> list[Finding]:
    findings = []
    if mbr.is_hybrid:
        findings.append(
            Finding(
                "gpt-hybrid-mbr",
                Severity.WARNING,
                f"{ends.name}: the MBR lists partitions beside the entry that announces the GPT (a hybrid MBR): the "
                "GPT is used",
                "programs that know only the MBR see other partitions",
            )
        )
    first_lba = next(entry.first_lba for entry in mbr.entries if entry.type_id == GPT_PROTECTIVE)
    if first_lba != 1:
        findings.append(
            Finding(
                "gpt-protective-entry",
                Severity.WARNING,
                f"{ends.name}: the MBR's entry of type {GPT_PROTECTIVE:#04x} begins at LBA {first_lba}, expected 1",
                "Linux and UEFI do not accept the GPT; write a protective MBR with gdisk",
            )
        )
    return findings
