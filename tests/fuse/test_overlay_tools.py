"""The tools that transform a disk, on a mounted appliance: the same result as on a plain raw file, in every format.

What is deterministic (tables, file systems with given identifiers and times, discards) is compared byte by byte with a
raw file that got the same commands. A kernel that mounts a file system writes the time of day into it, so after that
the trees of files are compared, and the committed images with the bytes that the mount showed.
"""

import contextlib
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuse.mounting import diskfs, mounted, run, sha256

pytestmark = [pytest.mark.fuse, pytest.mark.root]

MIB = 1 << 20
SIZE = 512 * MIB
TABLE = """label: gpt
label-id: 00000000-0000-4000-8000-000000000001
start=2048, size=16MiB, type=linux, uuid=00000000-0000-4000-8000-0000000000a1
"""
ADDED = """size=64MiB, type=linux, uuid=00000000-0000-4000-8000-0000000000a2
size=304MiB, type=linux, uuid=00000000-0000-4000-8000-0000000000a3
size=32MiB, type=linux, uuid=00000000-0000-4000-8000-0000000000a4
"""
UUID, OTHER_UUID = "11111111-2222-4333-8444-555555555555", "66666666-7777-4888-9999-aaaaaaaaaaaa"
TIMES = {"E2FSPROGS_FAKE_TIME": "1700000000", "E2FSCK_TIME": "1700000000", "SOURCE_DATE_EPOCH": "1700000000"}


def command(*words: object, given: str | None = None) -> str:
    result = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, check=False, input=given,
        env={**os.environ, **TIMES},
    )  # fmt: skip
    assert result.returncode == 0, f"{words}: exit {result.returncode}: {result.stderr}{result.stdout}"
    return result.stdout


@contextlib.contextmanager
def attached(path: Path) -> Iterator[str]:
    """Attach a loop device with its partitions; on leaving, all that was written to it has reached the file."""
    loop = run("losetup", "-f", "--show", path).strip()
    try:
        run("partx", "-a", loop)
        yield loop
    finally:
        subprocess.run(["blockdev", "--flushbufs", loop], check=False, capture_output=True)
        subprocess.run(["partx", "-d", loop], check=False, capture_output=True)
        run("losetup", "-d", loop)


@contextlib.contextmanager
def file_system(device: str, target: Path, kind: str) -> Iterator[Path]:
    target.mkdir(exist_ok=True)
    run("mount", "-t", kind, device, target)
    try:
        yield target
    finally:
        run("umount", target)


def build_source(folder: Path) -> tuple[Path, Path]:
    """Make a raw disk with one partition full of data and an area of old data behind it, and its appliance."""
    raw, ova = folder / "plain.raw", folder / "appliance.ova"
    raw.touch()
    os.truncate(raw, SIZE)
    command("sfdisk", "-q", raw, given=TABLE)
    with raw.open("r+b") as file:
        file.seek(MIB)
        file.write(random.Random(6).randbytes(24 * MIB))
        file.seek(425 * MIB)
        file.write(random.Random(7).randbytes(2 * MIB))
    diskfs("convert", "--quiet", raw, ova)
    return raw, ova


def transform(disk: Path) -> None:
    """Do all that is deterministic: partitions added, a file system made, grown and renamed, tables converted."""
    command("sfdisk", "-q", "--no-reread", "--append", disk, given=ADDED)
    with attached(disk) as loop:
        two, four = f"{loop}p2", f"{loop}p4"
        options = f"hash_seed={UUID},lazy_itable_init=0,lazy_journal_init=0"
        command("mkfs.ext4", "-q", "-U", UUID, "-E", options, two, "48M")
        command("tune2fs", "-U", OTHER_UUID, two)
        command("e2fsck", "-fy", two)
        command("resize2fs", two)
        command("blkdiscard", "-o", 4096, "-l", MIB, four)
        command("blkdiscard", "-z", "-o", 3 * MIB, "-l", 4096, four)
    # To an MBR and back again, as for a machine that boots by the BIOS; the identifiers are given anew.
    command("sgdisk", "--gpttombr", "1:2:3", disk)
    assert "label: dos" in command("sfdisk", "-d", disk)
    command("sgdisk", "--mbrtogpt", "-U", UUID, "-u", f"1:{UUID}", "-u", f"2:{OTHER_UUID}", disk)
    command("sgdisk", "-u", "3:33333333-2222-4333-8444-555555555555", "-c", "3:xfs", disk)


def fill(disk: Path, folder: Path) -> dict[str, list[tuple[str, str]]]:
    """Mount what is on the partitions, copy files in, delete some, trim; return the trees of files with digests."""
    files = folder / "files"
    if not files.exists():
        (files / "deep" / "er").mkdir(parents=True)
        for number in range(40):
            data = random.Random(number).randbytes(1000 * number * (number % 7))
            (files / ("deep/er" if number % 3 else "") / f"file{number}").write_bytes(data)
    trees = {}
    with attached(disk) as loop:
        command("mkfs.xfs", "-q", "-f", "-m", f"uuid={UUID}", f"{loop}p3")
        for number, kind in ((2, "ext4"), (3, "xfs")):
            with file_system(f"{loop}p{number}", folder / "target", kind) as target:
                run("cp", "-a", f"{files}/.", target)
                (target / "gone").write_bytes(b"\xee" * (6 * MIB))
                run("sync", "-f", target)
                (target / "gone").unlink()
                run("sync", "-f", target)
                assert "trimmed" in run("fstrim", "-v", target)
            with file_system(f"{loop}p{number}", folder / "target", kind) as target:
                found = [path for path in sorted(target.rglob("*")) if path.is_file()]
                trees[kind] = [(str(path.relative_to(target)), sha256(path)) for path in found]
    return trees


def test_tools_on_a_mounted_appliance_do_what_they_do_on_a_raw_file(tmp_path: Path) -> None:
    plain, ova = build_source(tmp_path)
    before = sha256(ova), ova.stat().st_mtime_ns
    overlay, shown = tmp_path / "overlay", tmp_path / "shown.raw"
    transform(plain)
    with mounted(ova, tmp_path / "mnt", "--overlay", overlay) as mnt:
        transform(mnt / "disk0.raw")
        run("cmp", mnt / "disk0.raw", plain)
    # The next mount has the partitions of the new table.
    with mounted(ova, tmp_path / "mnt", "--overlay", overlay) as mnt:
        assert {path.name for path in mnt.glob("disk0p*")} == {"disk0p1.raw", "disk0p2.raw", "disk0p3.raw"}
        run("cmp", mnt / "disk0.raw", plain)
        assert fill(mnt / "disk0.raw", tmp_path) == fill(plain, tmp_path)
        run("fsck.ext4", "-fn", mnt / "disk0p2.raw")
        run("xfs_repair", "-n", "-f", mnt / "disk0p3.raw")
        run("cp", "--sparse=always", mnt / "disk0.raw", shown)
        # Outside of the two file systems nothing depends on the time of day.
        for offset, length in ((0, 17 * MIB), (385 * MIB, SIZE - 385 * MIB)):
            run("cmp", "-i", offset, "-n", length, shown, plain)
    assert (sha256(ova), ova.stat().st_mtime_ns) == before
    diskfs("overlay-check", overlay)
    formats = {"raw": "raw", "vmdk": "vmdk", "vhd": "vpc", "vhdx": "vhdx", "ova": "vmdk"}
    for suffix, known_to_qemu_as in formats.items():
        target = tmp_path / f"committed.{suffix}"
        diskfs("commit", "--quiet", overlay, target)
        diskfs("compare", "--quiet", shown, target)
        if suffix == "ova":
            diskfs("verify", "--quiet", target)
            run("tar", "-C", tmp_path, "-xf", target)
            (target,) = tmp_path.glob("*-disk*.vmdk")
        # Another program's opinion.
        run("qemu-img", "compare", "-f", "raw", "-F", known_to_qemu_as, shown, target)
    diskfs("rollback", "--quiet", "--yes", overlay)
    assert not overlay.exists()
    with mounted(ova, tmp_path / "mnt") as mnt:
        assert run("sfdisk", "-d", mnt / "disk0.raw").count("uuid=") == 1
