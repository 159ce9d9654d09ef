"""Starts and stops under conditions that a shell, a service manager or an impatient user makes."""

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fuse.mounting import diskfs, environment, mounted, run, sha256, status

pytestmark = pytest.mark.fuse

MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(os.urandom(MIB))
    return path


def shell(script: str, expect: int = 0) -> "subprocess.CompletedProcess[str]":
    program = f"{sys.executable} -m diskfs"
    result = subprocess.run(
        ["bash", "-c", script.replace("DISKFS", program)],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == expect, result.stderr
    assert "Traceback" not in result.stderr
    return result


def test_closed_standard_streams_do_not_cost_the_image_its_descriptor(image: Path, tmp_path: Path) -> None:
    for closed in ("<&-", "<&- >&- 2>&-", ">&-"):
        (tmp_path / "mnt").mkdir(exist_ok=True)
        shell(f"DISKFS mount {image} {tmp_path}/mnt {closed}")
        assert sha256(tmp_path / "mnt/disk0.raw") == sha256(image)
        assert status(tmp_path / "mnt")["errors"] == 0
        diskfs("umount", tmp_path / "mnt")


@pytest.mark.parametrize("delay", [0.05, 0.1, 0.15, 0.2, 0.25, 0.3])
def test_whoever_kills_the_waiting_command_finds_it_mounted_or_not_mounted(
    delay: float, image: Path, tmp_path: Path
) -> None:
    mnt = tmp_path / "mnt"
    mnt.mkdir()
    with subprocess.Popen([sys.executable, "-m", "diskfs", "mount", image, mnt], env=environment()) as process:
        time.sleep(delay)
        process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        time.sleep(0.1)
        os.statvfs(mnt)  # raises if it is a dead mount
    assert sorted(os.listdir(mnt)) in ([], ["disk0.json", "disk0.raw", "export", "source"])
    subprocess.run(["fusermount3", "-u", mnt], check=False, capture_output=True)


def test_too_few_descriptors_leave_no_dead_mount(image: Path, tmp_path: Path) -> None:
    mnt = tmp_path / "mnt"
    mnt.mkdir()
    for limit in range(6, 20):
        script = f"ulimit -n {limit}; {sys.executable} -m diskfs mount {image} {mnt}"
        result = subprocess.run(["bash", "-c", script], env=environment(), capture_output=True, check=False)
        if result.returncode == 0:
            diskfs("umount", mnt)
        time.sleep(0.05)
        os.statvfs(mnt)
        assert os.listdir(mnt) == []


def test_a_mountpoint_behind_a_link_is_repaired_and_unmounted(image: Path, tmp_path: Path) -> None:
    mnt, link = tmp_path / "mnt", tmp_path / "link"
    mnt.mkdir()
    link.symlink_to("mnt")
    diskfs("mount", image, link)
    assert "mounted there already" in diskfs("mount", image, link, expect=1).stderr
    pid = status(mnt)["pid"]
    os.kill(pid, signal.SIGKILL)
    diskfs("mount", image, link)
    diskfs("umount", link)
    assert os.listdir(mnt) == []


def test_two_mounts_at_once_on_one_mountpoint_do_not_stack(image: Path, tmp_path: Path) -> None:
    mnt = tmp_path / "mnt"
    mnt.mkdir()
    command = [sys.executable, "-m", "diskfs", "mount", str(image), str(mnt)]
    both = [subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL) for _ in range(2)]
    assert sorted(process.wait(30) for process in both) == [0, 1]
    assert sum(f" {mnt} " in line for line in Path("/proc/self/mountinfo").read_text().split("\n")) == 1
    diskfs("umount", mnt)


def test_a_daemon_that_does_not_answer_is_named_and_not_waited_for(image: Path, tmp_path: Path) -> None:
    mnt = tmp_path / "mnt"
    mnt.mkdir()
    diskfs("mount", image, mnt)
    pid = status(mnt)["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        assert "does not answer" in diskfs("umount", mnt, expect=1, timeout=20).stderr
        assert "does not answer" in diskfs("mount", image, mnt, expect=1, timeout=20).stderr
        assert "silent" in diskfs("mounts", timeout=20).stdout
    finally:
        os.kill(pid, signal.SIGCONT)
    diskfs("umount", mnt)


def test_several_signals_end_a_mount_as_one_does(image: Path, tmp_path: Path) -> None:
    mnt = tmp_path / "mnt"
    mnt.mkdir()
    command = [sys.executable, "-m", "diskfs", "mount", "--foreground", str(image), str(mnt)]
    with subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL) as process:
        while not (mnt / "disk0.raw").exists():
            time.sleep(0.02)
        # One of them comes while the mount goes away: by then nothing listens any more.
        while process.poll() is None:
            process.send_signal(signal.SIGTERM)
            time.sleep(0.002)
        assert process.wait(10) in {0, -signal.SIGTERM}
    assert os.listdir(mnt) == []


def test_the_users_options_go_before_ours(image: Path, tmp_path: Path) -> None:
    for _ in range(3):
        with mounted(image, tmp_path / "mnt", "-o", "suid,dev,defaults,nofail,x-systemd.automount,fsname=other") as mnt:
            line = next(line for line in Path("/proc/self/mounts").read_text().split("\n") if f" {mnt} " in line)
            assert line.startswith("disk.raw ")
            assert not {"nosuid", "nodev"} & set(line.split()[3].split(","))
            assert "ro" in line.split()[3].split(",")


def test_umount_goes_on_after_one_that_fails(image: Path, tmp_path: Path) -> None:
    mnt = tmp_path / "mnt"
    mnt.mkdir()
    diskfs("mount", image, mnt)
    assert "missing" in diskfs("umount", tmp_path / "missing", mnt, expect=1).stderr
    assert os.listdir(mnt) == []


def test_no_member_is_lost_or_shown_under_anothers_name(corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "vm"
    shutil.copytree(corpus / "appliances", folder, ignore=shutil.ignore_patterns("[!t]*"))
    run("tar", "xf", folder / "two-disks.ova", "-C", folder)
    long = "n" * 230
    names = ["y", "q/r", f"{long}A.bin", f"{long}B.bin", "a\tb", "deep/" + "d/" * 60 + "end"]
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"%d" % number * 100)
    run("tar", "-C", folder, "-cf", tmp_path / "vm.ova", "vm.ovf", "vm-disk1.vmdk", "vm-disk2.vmdk", *names)
    with mounted(tmp_path / "vm.ova", tmp_path / "mnt") as mnt:
        contents = [path.read_bytes() for path in (mnt / "source").rglob("*") if path.is_file()]
        for number in range(len(names)):
            assert contents.count(b"%d" % number * 100) == 1
        assert (mnt / "source/y").read_bytes() == b"0" * 100


def test_listing_a_hostile_map_takes_no_longer_than_its_budget(tmp_path: Path) -> None:
    """A directory of 262,144 entries that all name one empty table: terabytes to look through, in a file of 1 MB."""
    tables, entries = 262_144, 4096
    header = struct.pack(
        "<4sIIQQQQIQQQB4sH", b"KDMV", 1, 1, tables * entries * 8, 8, 0, 0, entries, 0, 2, 1, 0, b"\n \r\n", 0
    ).ljust(512, b"\0")
    table_sector = 2 + tables * 4 // 512
    path = tmp_path / "hole.vmdk"
    path.write_bytes(header.ljust(1024, b"\0") + struct.pack("<I", table_sector) * tables + bytes(entries * 4))
    with mounted(path, tmp_path / "mnt") as mnt:
        began = time.monotonic()
        run("ls", "-ls", mnt)
        assert time.monotonic() - began < 10
        assert json.loads((mnt / "disk0.json").read_text())["virtual_size"] == tables * entries * 4096


def test_a_manifest_is_found_whatever_the_folder_and_the_name_are(corpus: Path, tmp_path: Path) -> None:
    for name in ("x" * 120 + "/" + "y" * 120 + "/vm", "n\x85ame"):
        folder = (tmp_path / name).parent
        folder.mkdir(parents=True, exist_ok=True)
        run("tar", "xf", corpus / "appliances/two-disks.ova", "-C", folder)
        base = Path(name).name
        if base != "vm":
            for suffix in ("ovf", "mf"):
                (folder / f"vm.{suffix}").rename(folder / f"{base}.{suffix}")
            manifest = folder / f"{base}.mf"
            manifest.write_text(manifest.read_text().replace("(vm.ovf)", f"({base}.ovf)"))
        diskfs("verify", folder / f"{base}.ovf")
        disk = folder / "vm-disk2.vmdk"
        disk.write_bytes(disk.read_bytes()[:-1] + b"\x01")
        assert "manifest-digest" in diskfs("verify", folder / f"{base}.ovf", expect=3).stdout
