"""A Windows on real NTFS volumes of a disk with a real partition table, from the image to the verdict."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from diskfs.preflight.opening import open_facts
from diskfs.preflight.request import Request
from tests.preflight.windows_tree import GIB, MIB, results, windows_tree

START = {"boot": 2048 * 512, "windows": 1026048 * 512}
SIZES = {"boot": 1024000 * 512, "windows": 8 * GIB}
DISK_SIZE = 9 * GIB


@pytest.fixture(scope="module")
def windows_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk of 9 GiB with an MBR, a partition with the boot manager and the system drive."""
    folder = tmp_path_factory.mktemp("windows")
    windows_tree(folder, size=DISK_SIZE).close()
    disk = folder / "disk.raw"
    for name, start in START.items():
        volume = folder / f"{name}.ntfs"
        _make_ntfs(volume, SIZES[name], folder / name, start // 512)
        _copy_data(volume, disk, start)
    return disk


@pytest.mark.root  # ntfs-3g may mount only for root
@pytest.mark.fuse
def test_the_facts_and_the_verdict_of_a_windows_image(windows_disk: Path) -> None:
    with open_facts(str(windows_disk), Request()) as facts:
        windows = facts.windows
        assert windows is not None
        assert str(windows) == "Windows Server 2019 Datacenter 1809 (build 17763, 64-bit)"
        assert windows.boot.fits == {"legacy-bios"}
        assert windows.files.kind == "ntfs"
        assert windows.files.free is not None
        assert abs(windows.files.free - _free_by_ntfsinfo(windows_disk.parent / "windows.ntfs")) <= MIB

    found = results(open_facts(str(windows_disk), Request()))

    wrong = {name: result.found for name, result in found.items() if result.refuses}
    assert not wrong
    assert found["VMIE-WIN-24"].status.value == "pass"
    assert found["VMIE-FS-04"].found == "disk0p1 is NTFS; disk0p2 is NTFS"


@pytest.mark.root  # ntfs-3g may mount only for root
@pytest.mark.fuse
def test_a_volume_that_needs_a_check_is_seen(windows_disk: Path, tmp_path: Path) -> None:
    disk, volume = tmp_path / "disk.raw", tmp_path / "windows.ntfs"
    for source, copy in ((windows_disk, disk), (windows_disk.parent / "windows.ntfs", volume)):
        subprocess.run(["cp", "--sparse=always", source, copy], check=True)
    subprocess.run(["ntfsfix", volume], check=True, capture_output=True)  # which sets the flag, for chkdsk
    _copy_data(volume, disk, START["windows"])

    found = results(open_facts(str(disk), Request()))

    assert found["VMIE-WIN-24"].status.value == "fail"
    assert "disk0p2: the NTFS volume is marked as in use" in found["VMIE-WIN-24"].found


@pytest.mark.root
@pytest.mark.fuse
def test_a_windows_for_uefi(tmp_path: Path) -> None:
    windows_tree(tmp_path, size=DISK_SIZE, scheme="gpt").close()
    disk, system, windows = tmp_path / "disk.raw", tmp_path / "esp", tmp_path / "windows.ntfs"
    with system.open("wb") as file:
        file.truncate(204800 * 512)
    subprocess.run(["mkfs.vfat", "-F", "32", system], check=True, capture_output=True)
    subprocess.run(["mcopy", "-s", "-i", system, tmp_path / "boot" / "EFI", "::/"], check=True)
    _copy_data(system, disk, 2048 * 512)
    _make_ntfs(windows, 7 * GIB, tmp_path / "windows", 239616)
    _copy_data(windows, disk, 239616 * 512)

    found = results(open_facts(str(disk), Request()))

    assert not {name: result.found for name, result in found.items() if result.refuses}
    assert found["VMIE-BOOT-02"].status.value == "pass"
    assert found["VMIE-BOOT-02"].found.startswith("uefi: ")
    assert found["VMIE-WIN-28"].found == "disk0p1: /EFI/Microsoft/Boot/BCD: the menu has 1 entries"


def _make_ntfs(volume: Path, size: int, content: Path, first_sector: int) -> None:
    with volume.open("wb") as file:
        file.truncate(size)
    options = ["--quiet", "--fast", "--force", "--sector-size", "512", "--partition-start", str(first_sector)]
    geometry = ["--heads", "255", "--sectors-per-track", "63"]
    subprocess.run(["mkntfs", *options, *geometry, volume], check=True, capture_output=True)
    with _mounted(volume, volume.with_suffix(".mount")) as mount:
        subprocess.run(["cp", "-r", f"{content}/.", mount], check=True)


@contextmanager
def _mounted(volume: Path, mount: Path) -> Iterator[Path]:
    mount.mkdir()
    subprocess.run(["ntfs-3g", volume, mount], check=True)
    try:
        yield mount
    finally:
        subprocess.run(["fusermount3", "-u", mount], check=True)


def _copy_data(volume: Path, disk: Path, start: int) -> None:
    """Copy what is not a hole."""
    with volume.open("rb") as source, disk.open("r+b") as target:
        offset, end = 0, volume.stat().st_size
        while offset < end:
            try:
                offset = os.lseek(source.fileno(), offset, os.SEEK_DATA)
            except OSError:
                return  # only a hole is left
            hole = os.lseek(source.fileno(), offset, os.SEEK_HOLE)
            while offset < hole:
                data = os.pread(source.fileno(), min(hole - offset, 4 * MIB), offset)
                os.pwrite(target.fileno(), data, start + offset)
                offset += len(data)


def _free_by_ntfsinfo(volume: Path) -> int:
    """Return the free bytes that ntfsinfo counts."""
    output = subprocess.run(["ntfsinfo", "-m", volume], check=True, capture_output=True, text=True).stdout
    fields = dict(line.strip().split(": ", 1) for line in output.splitlines() if ": " in line.strip())
    clusters = int(fields["Free Clusters"].split()[0])
    return clusters * int(fields["Cluster Size"])
