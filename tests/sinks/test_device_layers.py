"""Which devices and files share their bytes, by the tree that the kernel shows of them."""

import os
import stat
from pathlib import Path

import pytest

from diskfs.sinks.device_layers import share_bytes


def device(minor: int, major: int = 8, inode: int = 1) -> os.stat_result:
    """The status of a node of a block device, as os.stat gives it."""
    status = list(os.stat(os.devnull))[:10]
    status[0], status[1] = stat.S_IFBLK | 0o660, inode
    return os.stat_result(status, {"st_rdev": os.makedev(major, minor)})


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    """Disk 8:0 with the partitions 8:1 and 8:2, and loop device 7:0 over a file, with the partition 259:0."""
    devices = {"8:0": "sda", "8:1": "sda/sda1", "8:2": "sda/sda2", "7:0": "loop0", "259:0": "loop0/loop0p1"}
    (tmp_path / "dev/block").mkdir(parents=True)
    for number, path in devices.items():
        folder = tmp_path / "block" / path
        folder.mkdir(parents=True)
        (folder / "dev").write_text(f"{number}\n")
        if "/" in path:
            (folder / "partition").write_text("1\n")
        (tmp_path / "dev/block" / number).symlink_to(folder)
    (tmp_path / "disk.raw").touch()
    (tmp_path / "block/loop0/loop").mkdir()
    (tmp_path / "block/loop0/loop/backing_file").write_text(f"{tmp_path / 'disk.raw'}\n")
    return tmp_path


def test_devices_and_files_share_bytes_with_what_lies_below_them(sysfs: Path) -> None:
    disk, first, second, loop, part = device(0), device(1), device(2), device(0, 7), device(0, 259)
    file, other = (sysfs / "disk.raw").stat(), (sysfs / "block/sda/dev").stat()
    shared = [(disk, device(0, inode=2)), (disk, first), (disk, second), (loop, part), (loop, file), (part, file)]
    apart = [(first, second), (disk, loop), (disk, part), (disk, file), (loop, other), (file, other), (disk, device(9))]
    for pairs, expected in ((shared, True), (apart, False)):
        for one, two in pairs:
            assert share_bytes(one, two, sysfs) is expected, (one, two)
            assert share_bytes(two, one, sysfs) is expected, (two, one)


def test_a_loop_device_over_a_file_that_is_gone_is_only_itself(sysfs: Path) -> None:
    file = (sysfs / "disk.raw").stat()
    (sysfs / "disk.raw").unlink()
    assert not share_bytes(device(0, 7), file, sysfs)
    assert share_bytes(device(0, 7), device(0, 7, 5), sysfs)
