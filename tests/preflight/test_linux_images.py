"""The same guest on real file systems, behind a partition table and GRUB: what is found is what a folder shows."""

import os
import subprocess
from pathlib import Path

import pytest

from diskfs.disks.opening import open_source
from diskfs.preflight.facts import Facts
from diskfs.preflight.request import Request
from diskfs.preflight.rules.engine import run
from diskfs.preflight.rules.outcome import Status
from tests.guest.file_systems import make_btrfs, make_ext, make_xfs
from tests.preflight.linux_guest import RELEASE, ROOT_UUID, LinuxGuest, changed, install_grub, make_guest

START = 1 << 20


def _disk(path: Path, root: Path) -> None:
    """Put a file system behind an MBR with GRUB, holes left out."""
    size = root.stat().st_size
    with path.open("wb") as disk, root.open("rb") as part:
        disk.truncate(START + size)
        offset = 0
        while True:
            try:
                offset = os.lseek(part.fileno(), offset, os.SEEK_DATA)
            except OSError:
                break
            end = os.lseek(part.fileno(), offset, os.SEEK_HOLE)
            part.seek(offset)
            disk.seek(START + offset)
            disk.write(part.read(end - offset))
            offset = end
    layout = "label: dos\nstart=2048, type=83, bootable\n"
    subprocess.run(["sfdisk", "--quiet", path], input=layout.encode(), check=True)
    install_grub(path)


def _results(disk: Path) -> dict[str, tuple[Status, str, str]]:
    with open_source(str(disk)) as source, Facts(Request(), str(disk), source) as facts:
        assert facts.linux is not None
        assert facts.linux.default_kernel is not None
        assert facts.linux.default_kernel.release == RELEASE
        return {result.rule.id: (result.status, result.severity.value, result.found) for result in run(facts)}


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> LinuxGuest:
    return make_guest(tmp_path_factory.mktemp("images"))


SMALL = {"VMIE-LIN-03": "fail"}
"""What the small file systems break; on the large one nothing is broken."""


@pytest.mark.parametrize(
    ("kind", "expected"), [("ext4", {}), ("xfs", SMALL), ("btrfs", {**SMALL, "VMIE-FS-03": "pass"})]
)
def test_a_real_file_system_shows_what_the_folder_does(
    guest: LinuxGuest, tmp_path: Path, kind: str, expected: dict[str, str]
) -> None:
    root = tmp_path / "root.img"
    if kind == "ext4":
        make_ext(root, guest.root, "ext4", "-U", ROOT_UUID, size="1300M")
    elif kind == "xfs":
        make_xfs(root, guest.root, "-m", f"uuid={ROOT_UUID}")
    else:
        make_btrfs(root, guest.root, "-U", ROOT_UUID)
    _disk(tmp_path / "disk.raw", root)
    assert changed(guest.results(), _results(tmp_path / "disk.raw")) == expected
