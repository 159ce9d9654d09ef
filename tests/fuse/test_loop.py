"""What the mount is for: loop devices, partitions, kernel mounts and file system checkers on a mounted image."""

import contextlib
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuse.mounting import mounted, run, sha256

pytestmark = [pytest.mark.fuse, pytest.mark.root]

MIB = 1 << 20
LAYOUT = (("ext4", 48), ("xfs", 320), ("btrfs", 128))
"""File system and size in MiB of each partition, in order; the first begins at 1 MiB."""


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A raw disk with one partition of each file system, holding files, and its stream-optimized VMDK by qemu-img."""
    folder = tmp_path_factory.mktemp("loop")
    raw, vmdk = folder / "disk.raw", folder / "disk.vmdk"
    size = 2 + sum(mebibytes for _, mebibytes in LAYOUT)
    raw.touch()
    os.truncate(raw, size * MIB)
    table = "label: gpt\n" + "".join(f"size={mebibytes}MiB\n" for _, mebibytes in LAYOUT)
    subprocess.run(["sfdisk", "-q", raw], input=table, text=True, check=True, capture_output=True)
    with attached(raw, read_only=False) as loop:
        for number, (kind, _) in enumerate(LAYOUT, 1):
            force = "-F" if kind == "ext4" else "-f"
            run(f"mkfs.{kind}", "-q", force, f"{loop}p{number}")
            target = folder / "target"
            target.mkdir(exist_ok=True)
            run("mount", "-t", kind, f"{loop}p{number}", target)
            try:
                (target / "hello").write_text(f"on {kind}\n")
                (target / "data").write_bytes(random.Random(number).randbytes(3 * MIB + 17))
            finally:
                run("umount", target)
    run("qemu-img", "convert", "-O", "vmdk", "-o", "subformat=streamOptimized", raw, vmdk)
    return raw, vmdk


@contextlib.contextmanager
def attached(path: Path, *, read_only: bool = True) -> Iterator[str]:
    """Attach a loop device and make its partitions known; this kernel does not look for them by itself."""
    loop = run("losetup", "-f", "--show", *(["-r"] if read_only else []), path).strip()
    try:
        run("partx", "-a", loop)
        yield loop
    finally:
        subprocess.run(["partx", "-d", loop], check=False, capture_output=True)
        run("losetup", "-d", loop)


def test_file_systems_inside_a_mounted_vmdk_mount_and_check_as_those_of_the_raw_disk(
    disks: tuple[Path, Path], tmp_path: Path
) -> None:
    raw, vmdk = disks
    target = tmp_path / "target"
    target.mkdir()
    with mounted(vmdk, tmp_path / "mnt") as mnt, attached(mnt / "disk0.raw") as loop, attached(raw) as original:
        for number, (kind, _) in enumerate(LAYOUT, 1):
            partition, same = f"{loop}p{number}", f"{original}p{number}"
            options = "ro,norecovery" if kind == "xfs" else "ro"
            run("mount", "-t", kind, "-o", options, partition, target)
            try:
                assert (target / "hello").read_text() == f"on {kind}\n"
                assert (target / "data").read_bytes() == random.Random(number).randbytes(3 * MIB + 17)
            finally:
                run("umount", target)
            assert blkid(partition) == blkid(same)
            check = {
                "ext4": ("e2fsck", "-fn"),
                "xfs": ("xfs_repair", "-n"),
                "btrfs": ("btrfs", "check", "--readonly"),
            }[kind]
            assert run(*check, partition).replace(partition, "") == run(*check, same).replace(same, "")
        assert sha256(mnt / "disk0.raw") == sha256(raw)


def blkid(device: str) -> dict[str, str]:
    """Return what blkid finds, but for what names the device itself."""
    facts = dict(line.split("=", 1) for line in run("blkid", "-p", "-o", "export", device).splitlines())
    return {key: value for key, value in facts.items() if key not in {"DEVNAME", "PART_ENTRY_DISK"}}


def test_fsck_and_blkid_work_on_the_partition_files_themselves(disks: tuple[Path, Path], tmp_path: Path) -> None:
    with mounted(disks[1], tmp_path / "mnt") as mnt:
        for number, (kind, mebibytes) in enumerate(LAYOUT, 1):
            file = mnt / f"disk0p{number}.raw"
            assert run("blkid", "-p", "-o", "value", "-s", "TYPE", file).strip() == kind
            if number < len(LAYOUT):
                assert file.stat().st_size == mebibytes * MIB
        run("fsck.ext4", "-fn", mnt / "disk0p1.raw")
        run("xfs_repair", "-n", "-f", mnt / "disk0p2.raw")


def test_sfdisk_sees_the_same_table(disks: tuple[Path, Path], tmp_path: Path) -> None:
    raw, vmdk = disks
    with mounted(vmdk, tmp_path / "mnt") as mnt:
        expected = run("sfdisk", "-d", raw).replace(str(raw), "DISK")
        assert run("sfdisk", "-d", mnt / "disk0.raw").replace(str(mnt / "disk0.raw"), "DISK") == expected


def test_mkfs_and_sfdisk_on_a_read_only_mount_are_refused(disks: tuple[Path, Path], tmp_path: Path) -> None:
    before = sha256(disks[1])
    with mounted(disks[1], tmp_path / "mnt") as mnt:
        for command in (["mkfs.ext4", "-F", mnt / "disk0p1.raw"], ["sfdisk", "--delete", mnt / "disk0.raw"]):
            result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
            assert result.returncode
            assert "Read-only file system" in result.stderr
    assert sha256(disks[1]) == before
