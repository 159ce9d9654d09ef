"""Promise 11: a crash leaves the mountpoint failing loudly, a clean stop leaves it unmounted, and `diskfs mount`
repairs its own stale mounts."""

import errno
import functools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuse.mounting import diskfs, environment, mounted, run, status

pytestmark = pytest.mark.fuse

MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A stream-optimized VMDK of 8 MiB of data, written by qemu-img."""
    raw = tmp_path / "disk.raw"
    raw.write_bytes(random.Random(1).randbytes(8 * MIB))
    path = tmp_path / "disk.vmdk"
    run("qemu-img", "convert", "-O", "vmdk", "-o", "subformat=streamOptimized", raw, path)
    return path


@pytest.fixture
def mountpoint(tmp_path: Path) -> Path:
    path = tmp_path / "mnt"
    path.mkdir()
    return path


def wait_for(condition: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def is_mounted(mountpoint: Path) -> bool:
    return f" {mountpoint} " in Path("/proc/self/mountinfo").read_text()


def listing_error(folder: Path) -> int:
    try:
        os.listdir(folder)
    except OSError as error:
        return error.errno or 0
    return 0


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A child of nobody is reaped by init; until then it is a zombie that holds nothing.
    return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_unmounts_cleanly(image: Path, mountpoint: Path, number: signal.Signals) -> None:
    diskfs("mount", image, mountpoint)
    pid = status(mountpoint)["pid"]
    os.kill(pid, number)
    wait_for(lambda: not is_mounted(mountpoint))
    wait_for(lambda: not is_running(pid))
    assert os.listdir(mountpoint) == []


def test_foreground_serves_until_interrupted_and_exits_0(image: Path, mountpoint: Path) -> None:
    command = [sys.executable, "-m", "diskfs", "mount", "--foreground", str(image), str(mountpoint)]
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE) as process:
        wait_for((mountpoint / "disk0.raw").exists)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
    assert not is_mounted(mountpoint)


def test_an_unmount_from_outside_ends_the_daemon(image: Path, mountpoint: Path) -> None:
    diskfs("mount", image, mountpoint)
    pid = status(mountpoint)["pid"]
    run("fusermount3", "-u", mountpoint)
    wait_for(lambda: not is_running(pid))
    assert os.listdir(mountpoint) == []


def test_mount_returns_when_the_files_are_there(image: Path, mountpoint: Path) -> None:
    for _ in range(5):
        diskfs("mount", image, mountpoint)
        assert "disk0.raw" in os.listdir(mountpoint)
        diskfs("umount", mountpoint)


def state_of(mountpoint: Path) -> str:
    listed = json.loads(diskfs("mounts", "--json").stdout)
    return str(next(entry["state"] for entry in listed if entry["mountpoint"] == str(mountpoint)))


def test_a_killed_daemon_leaves_enotconn_and_the_next_mount_repairs_it(image: Path, mountpoint: Path) -> None:
    diskfs("mount", image, mountpoint)
    pid = status(mountpoint)["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not is_running(pid))
    # A request that is under way while the process dies is told ECONNABORTED, every later one ENOTCONN.
    wait_for(lambda: listing_error(mountpoint) == errno.ENOTCONN)
    assert listing_error(mountpoint) == errno.ENOTCONN
    # Others may have mounts of their own meanwhile, dead ones too.
    assert state_of(mountpoint) == "stale"
    with mounted(image, mountpoint):
        assert state_of(mountpoint) == "active"


def test_umount_takes_a_stale_mount_down(image: Path, mountpoint: Path) -> None:
    diskfs("mount", image, mountpoint)
    pid = status(mountpoint)["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not is_running(pid))
    diskfs("umount", mountpoint)
    assert not is_mounted(mountpoint)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_at_100_random_moments_under_load_it_mounts_again_each_time(image: Path, mountpoint: Path) -> None:
    before = set(os.listdir(image.parent))
    chance = random.Random(20)
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            try:
                with (mountpoint / "disk0.raw").open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                    while not stop.is_set() and file.read(256 * 1024):
                        pass
            except OSError:
                time.sleep(0.005)

    readers = [threading.Thread(target=load) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        for _ in range(100):
            diskfs("mount", image, mountpoint)
            pid = status(mountpoint)["pid"]
            time.sleep(chance.random() * 0.05)
            os.kill(pid, signal.SIGKILL)
            if chance.random() < 0.5:
                wait_for(functools.partial(lambda pid: not is_running(pid), pid))
        diskfs("mount", image, mountpoint)
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    diskfs("umount", mountpoint)
    assert not is_mounted(mountpoint)
    assert set(os.listdir(image.parent)) == before
    assert loop_devices_under(image.parent) == []


def test_a_failing_event_loop_leaves_the_mount_dead_and_exits_1(image: Path, mountpoint: Path) -> None:
    script = (
        "import sys, trio\n"
        "from diskfs.fuse import mount\n"
        "async def fail(session):\n"
        "    await trio.sleep(0.3)\n"
        "    raise RuntimeError('planted')\n"
        "mount.Session.serve = fail\n"
        "mount._prepare_for_users = lambda mountpoint: None\n"
        "from diskfs.cli.main import main\n"
        f"sys.exit(main(['mount', '--foreground', {str(image)!r}, {str(mountpoint)!r}]))\n"
    )
    result = subprocess.run([sys.executable, "-c", script], env=environment(), capture_output=True, check=False)
    assert result.returncode == 1
    with pytest.raises(OSError, match="not connected"):
        os.stat(mountpoint)
    diskfs("umount", mountpoint)


@pytest.mark.parametrize("round_number", range(4))
def test_a_signal_unmounts_while_requests_are_in_flight(image: Path, mountpoint: Path, round_number: int) -> None:
    diskfs("mount", image, mountpoint)
    daemon = status(mountpoint)["pid"]
    readers = [
        subprocess.Popen(
            ["dd", f"if={mountpoint}/disk0.raw", "of=/dev/null", "bs=1M", f"skip={number}", "iflag=direct"],
            stderr=subprocess.DEVNULL,
        )
        for number in range(4)
    ]
    time.sleep(0.05 * round_number)
    os.kill(daemon, signal.SIGTERM)
    wait_for(lambda: not is_running(daemon))
    assert not is_mounted(mountpoint)
    for reader in readers:
        reader.wait(30)


def test_a_non_empty_mountpoint_is_refused(image: Path, mountpoint: Path) -> None:
    (mountpoint / "file").touch()
    assert "not empty" in diskfs("mount", image, mountpoint, expect=1).stderr


def test_a_missing_mountpoint_and_a_file_are_refused(image: Path, tmp_path: Path) -> None:
    assert "no such folder" in diskfs("mount", image, tmp_path / "missing", expect=1).stderr
    assert "not a folder" in diskfs("mount", image, image, expect=1).stderr


def test_a_second_mount_on_a_live_one_is_refused(image: Path, mountpoint: Path) -> None:
    with mounted(image, mountpoint):
        assert "mounted there already" in diskfs("mount", image, mountpoint, expect=1).stderr


def test_the_folder_of_the_image_is_refused_as_its_mountpoint(image: Path) -> None:
    assert "not empty" in diskfs("mount", image, image.parent, expect=1).stderr
    assert image.exists()


def test_a_source_that_cannot_be_opened_leaves_no_mount(mountpoint: Path, tmp_path: Path) -> None:
    result = diskfs("mount", tmp_path / "missing.vmdk", mountpoint, expect=1)
    assert result.stderr.count("\n") == 1
    assert "no such file" in result.stderr
    assert not is_mounted(mountpoint)


def test_umount_names_the_process_that_keeps_the_mount_busy(image: Path, mountpoint: Path) -> None:
    with mounted(image, mountpoint):
        with (mountpoint / "disk0.raw").open("rb"):
            message = diskfs("umount", mountpoint, expect=1).stderr
            assert f"process {os.getpid()}" in message
        assert is_mounted(mountpoint)


@pytest.mark.root
def test_umount_names_the_loop_device_that_keeps_the_mount_busy(image: Path, mountpoint: Path) -> None:
    if os.geteuid():
        pytest.skip("loop devices need root")
    with mounted(image, mountpoint):
        loop = run("losetup", "-r", "-f", "--show", mountpoint / "disk0.raw").strip()
        try:
            assert loop in diskfs("umount", mountpoint, expect=1).stderr
        finally:
            run("losetup", "-d", loop)


def test_umount_of_a_plain_folder_says_so(mountpoint: Path) -> None:
    assert "no diskfs mount" in diskfs("umount", mountpoint, expect=1).stderr


def test_mounting_alone_adds_one_line_to_the_mounts_and_no_loop_device(image: Path, mountpoint: Path) -> None:
    # Other programs mount as well meanwhile, elsewhere.
    def mounts() -> int:
        return sum(str(image.parent) in line for line in Path("/proc/self/mountinfo").read_text().splitlines())

    assert mounts() == 0
    with mounted(image, mountpoint):
        assert mounts() == 1
        assert loop_devices_under(image.parent) == []


def loop_devices_under(folder: Path) -> list[str]:
    """Return the lines of losetup for loop devices that show a file of the folder; only root has any."""
    if os.geteuid() != 0:
        return []
    return [line for line in run("losetup", "-a").splitlines() if str(folder) in line]


def test_the_mount_shows_the_file_name_and_not_where_it_lies(image: Path, mountpoint: Path) -> None:
    with mounted(image, mountpoint):
        line = next(line for line in Path("/proc/self/mounts").read_text().splitlines() if f" {mountpoint} " in line)
        assert line.startswith("disk.vmdk ")
        assert str(image.parent) not in line.replace(str(mountpoint), "")


def test_mounts_lists_the_mount_with_its_process(image: Path, mountpoint: Path) -> None:
    import json

    with mounted(image, mountpoint):
        entries = list(json.loads(diskfs("mounts", "--json").stdout))
        entry = next(entry for entry in entries if entry["mountpoint"] == str(mountpoint))
        assert entry["state"] == "active"
        assert entry["source"] == "disk.vmdk"
        assert entry["pid"] == status(mountpoint)["pid"]
