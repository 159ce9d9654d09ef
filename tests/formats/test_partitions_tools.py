"""Partition tables made by sfdisk and sgdisk, and found in the wild, are listed as sfdisk lists them."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from diskfs_formats.partitions import PartitionTable, read_partition_table
from diskfs_formats.source import require_range

MIB = 1 << 20
LINUX = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"

needs_sfdisk = pytest.mark.skipif(shutil.which("sfdisk") is None, reason="sfdisk is not installed")
needs_sgdisk = pytest.mark.skipif(shutil.which("sgdisk") is None, reason="sgdisk is not installed")


class CountingFile:
    """A file that remembers what was read of it."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self.size = path.stat().st_size
        self.reads: list[tuple[int, int]] = []
        self._descriptor = os.open(path, os.O_RDONLY)

    def read_at(self, offset: int, length: int, /) -> bytes:
        require_range(self, offset, length)
        self.reads.append((offset, length))
        return os.pread(self._descriptor, length, offset)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1


def make_disk(path: Path, script: str, *, sector_size: int = 512, size: int = 64 * MIB) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    if sector_size == 512:
        run(["sfdisk", "--quiet", str(path)], script)
    else:
        # sfdisk takes the sector size of a file from 2.40 on only; fdisk reads the same scripts.
        script_path = path.with_suffix(".script")
        script_path.write_text(script, "utf-8")
        answer = run(["fdisk", "--sector-size", str(sector_size), str(path)], f"I\n{script_path}\nw\n")
        assert "Script successfully applied" in answer
    return path


def run(command: Sequence[str], script: str = "") -> str:
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    return subprocess.run(
        command, input=script, encoding="utf-8", check=True, stdout=subprocess.PIPE, env=environment
    ).stdout


def read_table(path: Path, sector_size: int | None = None) -> PartitionTable:
    disk = CountingFile(path)
    try:
        table = read_partition_table(disk, sector_size=sector_size)
    finally:
        disk.close()
    assert table is not None
    return table


def sfdisk_listing(path: Path) -> dict[str, Any]:
    table = json.loads(run(["sfdisk", "--json", str(path)]))["partitiontable"]
    return listing(path, table, table.get("partitions", []))


def fdisk_listing(path: Path, sector_size: int) -> dict[str, Any]:
    dump_path = path.with_suffix(".dump")
    run(["fdisk", "--sector-size", str(sector_size), str(path)], f"O\n{dump_path}\nq\n")
    head, _, body = dump_path.read_text("utf-8").partition("\n\n")
    keys = dict(line.split(": ") for line in head.splitlines())
    table = {"label": keys["label"], "id": keys["label-id"], "sectorsize": int(keys["sector-size"])}
    partitions = []
    for line in body.splitlines():
        node, _, rest = line.partition(" : ")
        pairs = re.findall(r"""([a-z]+)=\s*(?:"([^"]*)"|([^\s,]+))""", rest)
        values: dict[str, Any] = {key: quoted or plain for key, quoted, plain in pairs}
        values.update(node=node, start=int(values["start"]), size=int(values["size"]), bootable="bootable" in rest)
        partitions.append(values)
    return listing(path, table, partitions)


def listing(path: Path, table: dict[str, Any], partitions: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "scheme": {"dos": "mbr", "gpt": "gpt"}[table["label"]],
        "sector_size": table["sectorsize"],
        "id": table["id"].lower(),
        "partitions": [
            {
                "number": int(one["node"].removeprefix(str(path))),
                "start": one["start"],
                "size": one["size"],
                "type": one["type"].lower(),
                "uuid": one.get("uuid", "").lower(),
                "name": one.get("name", ""),
                "bootable": one.get("bootable", False) or "LegacyBIOSBootable" in one.get("attrs", ""),
            }
            for one in partitions
        ],
    }


def our_listing(table: PartitionTable) -> dict[str, Any]:
    return {
        "scheme": table.scheme,
        "sector_size": table.sector_size,
        "id": table.disk_id,
        "partitions": [
            {
                "number": one.number,
                "start": one.first_lba,
                "size": one.size // table.sector_size,
                "type": f"{one.type_id:x}" if isinstance(one.type_id, int) else str(one.type_id),
                "uuid": str(one.unique_id or ""),
                "name": one.name,
                "bootable": one.bootable,
            }
            for one in table.partitions
        ],
    }


def rules(table: PartitionTable) -> list[str]:
    return [finding.rule for finding in table.findings]


SCRIPTS = {
    "gpt": f'label: gpt\nsize=4MiB, type={LINUX}, name=root\nsize=8MiB, type=U, name="EFI System"\n',
    "gpt without partitions": "label: gpt\n",
    "gpt, numbers with gaps": "label: gpt\n2: size=4MiB\n7: size=4MiB\n128: size=4MiB\n",
    "gpt, numbers against the order on disk": "label: gpt\n1: start=20480, size=2048\n2: start=2048, size=2048\n",
    "gpt, names beyond ASCII": 'label: gpt\nsize=4MiB, name="Größe - 数据 😀"\n',
    "gpt, longest name": f"label: gpt\nsize=4MiB, name={'n' * 36}\n",
    "gpt, legacy BIOS bootable": 'label: gpt\nsize=4MiB, attrs="LegacyBIOSBootable"\nsize=4MiB, attrs="GUID:60"\n',
    "gpt, 4 entries": "label: gpt\ntable-length: 4\nsize=4MiB\nsize=4MiB\n",
    "gpt, 1024 entries": "label: gpt\ntable-length: 1024\nsize=4MiB\n1024: size=4MiB\n",
    "mbr": "label: dos\nsize=4MiB, type=83, bootable\nsize=4MiB, type=7\n",
    "mbr without partitions": "label: dos\n",
    "mbr, four primary": "label: dos\n" + "size=4MiB\n" * 4,
    "mbr, numbers with gaps": "label: dos\n1: size=4MiB\n3: size=4MiB, type=c\n4: size=4MiB, type=ef\n",
    "mbr, logical": "label: dos\nsize=4MiB\ntype=5\nsize=4MiB\nsize=4MiB, type=82\nsize=4MiB, bootable\n",
    "mbr, extended (LBA)": "label: dos\ntype=f\nsize=4MiB\nsize=4MiB\n",
    "mbr, extended (Linux)": "label: dos\ntype=85\nsize=4MiB\nsize=4MiB\n",
    "mbr, extended in the middle": "label: dos\nsize=4MiB\nsize=20MiB, type=5\nsize=4MiB\n5: size=4MiB\n6: size=4MiB\n",
    "mbr, empty extended": "label: dos\nsize=4MiB\ntype=f\n",
    "mbr, many logical": "label: dos\ntype=f\n" + "size=300KiB\n" * 28,
}


@needs_sfdisk
@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS.keys())
def test_table_is_listed_as_sfdisk_lists_it(tmp_path: Path, script: str) -> None:
    path = make_disk(tmp_path / "disk", script)
    table = read_table(path)
    assert our_listing(table) == sfdisk_listing(path)
    assert rules(table) == []


@needs_sfdisk
@pytest.mark.parametrize("script", [one for name, one in SCRIPTS.items() if name.startswith("gpt")])
def test_gpt_of_4096_byte_sectors_is_found_without_being_told(tmp_path: Path, script: str) -> None:
    path = make_disk(tmp_path / "disk", script, sector_size=4096, size=256 * MIB)
    expected = fdisk_listing(path, 4096)
    assert expected["sector_size"] == 4096
    for sector_size in (None, 4096):
        table = read_table(path, sector_size)
        assert our_listing(table) == expected
        assert rules(table) == []


@needs_sfdisk
@pytest.mark.parametrize("script", [SCRIPTS["mbr, logical"], SCRIPTS["mbr"]])
def test_mbr_of_4096_byte_sectors_is_read_when_told(tmp_path: Path, script: str) -> None:
    path = make_disk(tmp_path / "disk", script, sector_size=4096)
    table = read_table(path, 4096)
    assert our_listing(table) == fdisk_listing(path, 4096)
    assert table.partitions[0].offset == table.partitions[0].first_lba * 4096
    assert rules(table) == []


@needs_sfdisk
def test_offset_and_size_in_bytes_are_where_the_partition_is(tmp_path: Path) -> None:
    path = make_disk(tmp_path / "disk", "label: gpt\nstart=4096, size=6144\n")
    (partition,) = read_table(path).partitions
    assert (partition.offset, partition.size) == (4096 * 512, 6144 * 512)
    assert (partition.first_lba, partition.last_lba) == (4096, 10239)


@needs_sfdisk
def test_logical_partitions_out_of_disk_order_keep_the_order_of_the_chain(tmp_path: Path) -> None:
    script = (
        "label: dos\n1: start=2048, size=100000, type=5\n"
        "5: start=60000, size=2048\n6: start=10000, size=2048\n7: start=80000, size=2048\n"
    )
    path = make_disk(tmp_path / "disk", script)
    table = read_table(path)
    assert our_listing(table) == sfdisk_listing(path)
    assert [one.first_lba for one in table.partitions if one.number >= 5] == [60000, 10000, 80000]


@needs_sfdisk
def test_deleted_logical_partition_leaves_no_gap_in_the_numbers(tmp_path: Path) -> None:
    path = make_disk(tmp_path / "disk", SCRIPTS["mbr, logical"])
    run(["sfdisk", "--quiet", "--delete", str(path), "6"])
    table = read_table(path)
    assert our_listing(table) == sfdisk_listing(path)
    assert [one.number for one in table.partitions] == [1, 2, 5, 6]


@needs_sfdisk
def test_only_the_extended_partition_is_a_container(tmp_path: Path) -> None:
    table = read_table(make_disk(tmp_path / "disk", SCRIPTS["mbr, extended in the middle"]))
    assert [one.number for one in table.partitions if one.is_container] == [2]


@needs_sfdisk
@needs_sgdisk
def test_hybrid_mbr_gives_way_to_the_gpt(tmp_path: Path) -> None:
    path = make_disk(tmp_path / "disk", SCRIPTS["gpt"])
    run(["sgdisk", "--hybrid", "1:2", str(path)])
    table = read_table(path)
    assert our_listing(table) == sfdisk_listing(path)
    assert table.scheme == "gpt"
    assert rules(table) == ["gpt-hybrid-mbr"]


@needs_sfdisk
@needs_sgdisk
def test_moved_entries_are_found_by_the_header(tmp_path: Path) -> None:
    path = make_disk(tmp_path / "disk", SCRIPTS["gpt"])
    run(["sgdisk", "--move-main-table=1000", str(path)])
    table = read_table(path)
    assert our_listing(table) == sfdisk_listing(path)
    assert rules(table) == []


@needs_sfdisk
@pytest.mark.parametrize("sector_size", [512, 4096])
def test_erased_primary_gpt_is_read_from_the_backup(tmp_path: Path, sector_size: int) -> None:
    path = make_disk(tmp_path / "disk", SCRIPTS["gpt"], sector_size=sector_size)
    expected = fdisk_listing(path, sector_size)
    with path.open("r+b") as file:
        file.seek(sector_size)
        file.write(bytes(sector_size))
    table = read_table(path)
    assert our_listing(table) == expected
    assert rules(table) == ["gpt-backup-header-used"]


@needs_sfdisk
def test_enlarged_disk_keeps_its_table_and_says_so(tmp_path: Path) -> None:
    path = make_disk(tmp_path / "disk", SCRIPTS["gpt"])
    expected = sfdisk_listing(path)
    os.truncate(path, 80 * MIB)
    table = read_table(path)
    assert our_listing(table) == expected
    assert rules(table) == ["gpt-backup-not-at-end"]


@needs_sfdisk
def test_disk_cut_short_keeps_its_table_and_says_so(tmp_path: Path) -> None:
    path = make_disk(tmp_path / "disk", SCRIPTS["gpt"])
    expected = sfdisk_listing(path)
    os.truncate(path, 10 * MIB)
    table = read_table(path)
    assert our_listing(table) == expected
    assert rules(table) == ["gpt-backup-past-end", "partition-past-end"]
    assert "partition 2 " in table.findings[1].message


@needs_sfdisk
@pytest.mark.parametrize("sector_size", [512, 4096])
def test_gpt_costs_two_reads(tmp_path: Path, sector_size: int) -> None:
    disk = CountingFile(make_disk(tmp_path / "disk", SCRIPTS["gpt"], sector_size=sector_size))
    assert read_partition_table(disk) is not None
    disk.close()
    assert len(disk.reads) == 2
    assert sum(length for _, length in disk.reads) <= 64 << 10


@needs_sfdisk
def test_mbr_costs_one_read_and_one_for_each_logical_partition(tmp_path: Path) -> None:
    disk = CountingFile(make_disk(tmp_path / "disk", SCRIPTS["mbr, logical"]))
    assert read_partition_table(disk) is not None
    disk.close()
    assert len(disk.reads) == 1 + 3


@pytest.mark.parametrize("file_system", [["mkfs.vfat"], ["mkfs.vfat", "-F", "32"], ["mkfs.ext4", "-q"], ["mkswap"]])
def test_file_system_on_the_bare_disk_is_no_table(tmp_path: Path, file_system: Sequence[str]) -> None:
    if shutil.which(file_system[0]) is None:
        pytest.skip(f"{file_system[0]} is not installed")
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.truncate(64 * MIB)
    run([*file_system, str(path)])
    disk = CountingFile(path)
    assert read_partition_table(disk) is None
    disk.close()


@needs_sfdisk
@pytest.mark.parametrize(
    ("name", "expected_rules"),
    [
        ("dfvfs/gpt.raw", []),
        ("dfvfs/gpt_empty_with_mbr.raw", ["gpt-stale"]),
        ("dfvfs/gpt_non_sequential.raw", []),
        ("dfvfs/mbr.raw", []),
        ("plaso/tsk_volume_system.raw", []),
    ],
)
def test_corpus_table_is_listed_as_sfdisk_lists_it(corpus: Path, name: str, expected_rules: list[str]) -> None:
    table = read_table(corpus / name)
    expected = sfdisk_listing(corpus / name)
    assert expected["partitions"]
    assert our_listing(table) == expected
    assert rules(table) == expected_rules


@pytest.mark.parametrize("name", ["dfvfs/fat12.raw", "dfvfs/ntfs.raw"])
def test_corpus_volume_without_table_has_none(corpus: Path, name: str) -> None:
    disk = CountingFile(corpus / name)
    assert read_partition_table(disk) is None
    disk.close()
