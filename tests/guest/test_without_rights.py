"""Reading the inside of a disk needs no root, mounts nothing, makes no loop device, copies nothing: seen by strace."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest import file_systems as make
from tests.helpers import ROOT

PROGRAM = """
import sys
sys.path[:0] = sys.argv[2:]
from diskfs.disks.opening import open_source
from diskfs.guest.volumes import volumes
with open_source(sys.argv[1]) as source, volumes(source) as found:
    for volume in found:
        files = volume.files
        print(volume.name, volume.filesystem, files.read("/etc/os-release", limit=99), files.free)
"""

NOBODY = 65534
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
CALLS = (
    "open,openat,openat2,creat,mkdir,mkdirat,mount,umount2,fsopen,move_mount,ioctl,socket,connect,memfd_create,truncate"
)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that other users may enter, which pytest's own is not."""
    with tempfile.TemporaryDirectory(prefix="diskfs-rights-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed: run scripts/setup")
def test_another_user_reads_and_touches_nothing_else(folder: Path) -> None:
    tree = make.make_tree(folder / "tree", many=10)
    esp = make.make_fat(folder / "esp.img", tree, 16, 16 << 20)
    root = make.make_ext(folder / "root.img", tree, size="48M")
    disk = folder / "disk.img"
    with disk.open("wb") as file:
        file.truncate(80 << 20)
    make.run("sfdisk", "-q", str(disk), stdin="label: gpt\nstart=2048, size=32768\nstart=34816, size=98304\n")
    with disk.open("r+b") as file:
        for offset, part in ((1 << 20, esp), (17 << 20, root)):
            file.seek(offset)
            file.write(part.read_bytes())
    trace = folder / "trace"
    trace.mkdir()
    command = ["strace", "-f", "-qq", "-s", "300", "-e", f"trace={CALLS}", "-o", str(trace / "log")]
    as_nobody = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"] if os.geteuid() == 0 else []
    python = _interpreter(as_nobody)
    if python is None:
        pytest.skip(f"no Python {VERSION} on this machine can be run by another user")
    command += [python, "-B", "-c", PROGRAM, str(disk), str(ROOT), str(ROOT / "formats"), sysconfig.get_path("purelib")]
    if as_nobody:
        os.chown(trace, NOBODY, NOBODY)
        command = [*as_nobody, *command]
    before = sorted(folder.iterdir())
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, cwd="/", env={"PATH": os.environ["PATH"]}
    )
    assert result.returncode == 0, result.stderr
    release = (tree / "etc/os-release").read_bytes()
    lines = result.stdout.splitlines()
    assert [line.startswith(start) for line, start in zip(lines, ("disk0p1 vfat b'", "disk0p2 ext4 b'"), strict=True)]
    assert all(repr(release) in line for line in lines)
    assert sorted(folder.iterdir()) == before
    _check((trace / "log").read_text(), disk)


def _check(log: str, disk: Path) -> None:
    python = {str(ROOT), sys.prefix, sys.base_prefix, str(Path(sys.executable).resolve().parents[1])}
    system = (
        "/lib",
        "/usr/lib",
        "/usr/share",
        "/etc",
        "/proc/",
        "/sys/",
        "/dev/null",
        "/usr/local/lib",
        "/dev/urandom",
    )
    opened = 0
    for line in log.splitlines():
        call = re.match(r"\d+ +(?:<\.\.\. )?(\w+)", line)
        if call is None or "resumed>" in line:
            continue
        name = call.group(1)
        assert name not in {
            "mount",
            "umount2",
            "fsopen",
            "move_mount",
            "memfd_create",
            "creat",
            "truncate",
            "mkdir",
            "mkdirat",
        }, line
        assert "LOOP" not in line, line
        if name == "socket":
            assert "AF_UNIX" in line, line  # none leaves the machine
        if name not in {"open", "openat"} or "ENOENT" in line or "ENOTDIR" in line:
            continue
        path = line.split('"')[1]
        if path == str(disk):
            opened += 1
            assert "O_RDONLY" in line, line
            continue
        assert path in {"/", "."} or path.startswith((*python, *system)), line
        assert not re.search(r"O_(WRONLY|RDWR|CREAT|TMPFILE)", line) or path.startswith("/dev/null"), line
    assert opened == 1, "the image is opened once, by the parent"


def _interpreter(as_nobody: list[str]) -> str | None:
    """Return a Python of this version that the user may run, who may not enter the home of another."""
    for python in (sys.executable, f"/usr/bin/python{VERSION}", f"/usr/local/bin/python{VERSION}"):
        program = f"import sys; sys.path.append({sysconfig.get_path('purelib')!r}); import google_crc32c, pytsk3"
        # By way of a shell, since setpriv itself may still go where only root may.
        command = [*as_nobody, "sh", "-c", 'exec "$0" "$@"', python, "-c", program]
        if shutil.which(python) and not subprocess.run(command, check=False, capture_output=True, cwd="/").returncode:
            return python
    return None
