"""`export/`: other formats of a mounted disk, as other programs see them straight on the mount."""

import json
import os
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from diskfs.disks.opening import open_source
from diskfs.fuse.export import ExportedFile, Layout, export_folder
from diskfs.fuse.layout import build_tree
from diskfs.fuse.sizing import Sizing
from diskfs.fuse.tree import Directory, File
from diskfs_formats.extents import Extent, ExtentKind
from diskfs_formats.raw import RawImage
from diskfs_formats.source import MemorySource
from tests.fuse.mounting import diskfs, mounted, run, sha256, status
from tests.helpers import assert_same_bytes
from tests.samples.writing import DISKS, files_of, write_by_map

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed: run scripts/setup")

MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40
NAMES = ["disk0-dynamic.vhd", "disk0-flat.vmdk", "disk0.vhd", "disk0.vhdx", "disk0.vmdk"]
EXPORTS = [("vhd", "fixed", "disk0.vhd"), ("vhd", "dynamic", "disk0-dynamic.vhd"), ("vhdx", "dynamic", "disk0.vhdx"),
           ("vmdk", "monolithicFlat", "disk0.vmdk")]  # fmt: skip
QEMU_NAMES = {"disk0.vhd": "vpc", "disk0-dynamic.vhd": "vpc", "disk0.vhdx": "vhdx", "disk0.vmdk": "vmdk"}


@pytest.fixture(params=["odd size", "full", "compressed", "shuffled vhdx"])
def image(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """An image, and its bytes as a raw file."""
    written = DISKS[request.param](tmp_path)
    path = tmp_path / "disk.image"
    written.disk.close()
    return (path if path.exists() else written.raw), written.raw


@pytest.mark.fuse
def test_every_file_is_the_one_that_the_layout_gives_and_its_size_is_exact(
    image: tuple[Path, Path], tmp_path: Path
) -> None:
    path, _ = image
    with open_source(str(path)) as opened, mounted(path, tmp_path / "mnt") as mnt:
        export = mnt / "export"
        assert sorted(os.listdir(export)) == NAMES
        for format_name, variant, name in EXPORTS:
            for file in files_of(opened.disks[0].image, format_name, variant, name, reproducible=True):
                written = write_by_map(file, tmp_path)
                shown = (export / file.name).stat()
                assert shown.st_size == written.stat().st_size == file.content.size
                assert sha256(export / file.name) == sha256(written)
                data = sum(part.length for part in file.content.extents() if part.kind is ExtentKind.DATA)
                assert shown.st_blocks == -(-data // 512)
                copy = tmp_path / "copy"
                run("cp", export / file.name, copy)
                assert sha256(copy) == sha256(written)


@pytest.mark.fuse
def test_a_copy_is_what_convert_writes_reproducibly(image: tuple[Path, Path], tmp_path: Path) -> None:
    path, _ = image
    converted = tmp_path / "converted"
    converted.mkdir()
    for format_name, variant, name in EXPORTS:
        options = ("--reproducible", "-O", format_name, "--variant", variant)
        diskfs("convert", *options, path, converted / name)
    assert sorted(os.listdir(converted)) == NAMES
    with mounted(path, tmp_path / "mnt") as mnt:
        for name in NAMES:
            copy = tmp_path / "copy"
            run("cp", "--sparse=always", mnt / "export" / name, copy)
            assert sha256(copy) == sha256(converted / name)


@pytest.mark.fuse
def test_qemu_and_the_libraries_read_the_mounted_files(image: tuple[Path, Path], tmp_path: Path) -> None:
    path, raw = image
    size = -(-raw.stat().st_size // 512) * 512
    with mounted(path, tmp_path / "mnt") as mnt:
        for name, qemu_name in QEMU_NAMES.items():
            file = mnt / "export" / name
            found = json.loads(run("qemu-img", "info", "-f", qemu_name, "--output=json", file))
            assert found["virtual-size"] == size
            assert run("qemu-img", "compare", "-f", "raw", "-F", qemu_name, raw, file) == "Images are identical.\n"
        assert "No errors were found" in run("qemu-img", "check", "-f", "vhdx", mnt / "export/disk0.vhdx")
        assert f"{size} bytes" in run("vmdkinfo", mnt / "export/disk0.vmdk")
        if shutil.which("vhdiinfo"):
            for name in ("disk0.vhd", "disk0-dynamic.vhd", "disk0.vhdx"):
                assert f"({size} bytes)" in run("vhdiinfo", mnt / "export" / name)


@pytest.mark.fuse
def test_files_are_read_at_random_by_many_at_once(image: tuple[Path, Path], tmp_path: Path) -> None:
    path, _ = image
    with mounted(path, tmp_path / "mnt") as mnt:
        for name in NAMES:
            data = (mnt / "export" / name).read_bytes()
            descriptor = os.open(mnt / "export" / name, os.O_RDONLY)

            def read(seed: int, data: bytes = data, descriptor: int = descriptor) -> None:
                chance = random.Random(seed)
                for _ in range(20):
                    offset = chance.randrange(len(data))
                    length = chance.choice((1, 511, 512, 4097, 200_000))
                    assert_same_bytes(os.pread(descriptor, length, offset), data[offset : offset + length])

            with ThreadPoolExecutor(8) as pool:
                list(pool.map(read, range(8)))
            os.close(descriptor)


@pytest.mark.fuse
def test_a_mounted_export_is_mounted_again(tmp_path: Path) -> None:
    written = DISKS["shuffled vmdk"](tmp_path)
    written.disk.close()
    with mounted(written.raw, tmp_path / "mnt") as mnt:
        for number, name in enumerate(("disk0.vhd", "disk0-dynamic.vhd", "disk0.vhdx", "disk0.vmdk")):
            assert not list(json.loads(diskfs("info", "--json", mnt / "export" / name).stdout)["findings"])
            with mounted(mnt / "export" / name, tmp_path / f"mnt{number}") as again:
                assert sha256(again / "disk0.raw") == sha256(mnt / "disk0.raw")


@pytest.mark.fuse
def test_a_disk_of_1_tib_takes_no_space_and_no_time(tmp_path: Path) -> None:
    written = DISKS["1 TiB, sparse"](tmp_path)
    written.disk.close()
    with mounted(written.raw, tmp_path / "mnt") as mnt:
        before = time.monotonic()
        sizes = {name: (mnt / "export" / name).stat() for name in NAMES}
        assert time.monotonic() - before < 10
        assert sizes["disk0.vhd"].st_size == TIB + 512
        assert sizes["disk0-flat.vmdk"].st_size == TIB
        assert sizes["disk0-dynamic.vhd"].st_size < 16 * MIB
        for name, found in sizes.items():
            # The BAT of a VHDX has 8 bytes for each 2 MiB of the disk.
            assert found.st_blocks * 512 < 6 * MIB, name
        copy = tmp_path / "copy.vhd"
        run("cp", "--sparse=always", mnt / "export/disk0-dynamic.vhd", copy)
        compared = run("qemu-img", "compare", "-f", "raw", "-F", "vpc", written.raw, copy)
        assert compared == "Images are identical.\n"


@pytest.mark.fuse
def test_an_appliance_exports_each_disk(corpus: Path, tmp_path: Path) -> None:
    with mounted(corpus / "appliances/two-disks.ova", tmp_path / "mnt") as mnt:
        export = mnt / "export"
        assert sorted(os.listdir(export)) == sorted([*NAMES, *(name.replace("disk0", "disk1") for name in NAMES)])
        for disk in ("disk0", "disk1"):
            for name, qemu_name in QEMU_NAMES.items():
                file = export / name.replace("disk0", disk)
                compared = run("qemu-img", "compare", "-f", "raw", "-F", qemu_name, mnt / f"{disk}.raw", file)
                assert compared == "Images are identical.\n"


@pytest.mark.fuse
def test_a_damaged_grain_fails_its_own_reads_in_every_format(corpus: Path, tmp_path: Path) -> None:
    # Cut in the middle of a grain: what lies behind it is damaged, and the map is not.
    with mounted(corpus / "hostile/recipes/mut-streamopt-truncated-mid-grain.vmdk", tmp_path / "mnt") as mnt:
        assert sorted(os.listdir(mnt / "export")) == NAMES
        raw, fixed = os.open(mnt / "disk0.raw", os.O_RDONLY), os.open(mnt / "export/disk0.vhd", os.O_RDONLY)
        outcomes = set()
        for offset in range(0, 10485760, 65536):
            found = [read_or_fail(descriptor, offset) for descriptor in (raw, fixed)]
            assert found[0] == found[1]
            outcomes.add(found[0] is None)
        os.close(raw)
        os.close(fixed)
        assert outcomes == {True, False}
        with pytest.raises(OSError, match="Input/output error"):
            (mnt / "export/disk0-dynamic.vhd").read_bytes()
        assert (mnt / "export/disk0.vhdx").stat().st_size > 4 * MIB


def read_or_fail(descriptor: int, offset: int) -> bytes | None:
    try:
        return os.pread(descriptor, 65536, offset)
    except OSError:
        return None


class Counted(RawImage):
    """A disk that counts how often its map is asked for."""

    def __init__(self, size: int) -> None:
        super().__init__(MemorySource(b"", "disk.raw"))
        self._length = size
        self.asked = 0
        self.gate = threading.Event()
        self.gate.set()

    @property
    def size(self) -> int:
        return self._length

    def extents(self, offset: int = 0, length: int | None = None, /) -> Iterator[Extent]:
        self.asked += 1
        self.gate.wait(30)
        yield Extent(offset, self._length - offset if length is None else length, ExtentKind.HOLE)


def files_in(folder: Directory) -> list[File]:
    return [entry for entry in folder.children if isinstance(entry, File)]


@pytest.mark.fuse
def test_a_listing_names_every_file_also_where_sizes_cannot_be_had(tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", image, "1G")
    run("qemu-io", "-f", "qcow2", "-c", "write -P 1 1M 1M", "-c", "write -P 2 700M 64k", image)
    # The sizes of these follow from the map. Its part from 512 MiB on is in an L2 table that nobody has read before.
    unsized = {"disk0-dynamic.vhd", "disk0.vhdx"}
    sized = {"disk0-flat.vmdk", "disk0.vhd", "disk0.vmdk"}
    with mounted(image, tmp_path / "mnt") as mountpoint:
        folder = mountpoint / "export"
        # A source that changes under a mount fails every read of it.
        os.utime(image)
        for _ in range(2):
            assert set(os.listdir(folder)) == sized | unsized
        listed = subprocess.run(["ls", "-l", folder], capture_output=True, text=True, check=False)
        assert {line.split()[-1] for line in listed.stdout.splitlines()[1:] if "?" not in line} == sized
        assert sorted(line.split("'")[1].split("/")[-1] for line in listed.stderr.splitlines()) == sorted(unsized)
        for name in unsized:
            with pytest.raises(OSError, match="Stale file handle"):
                (folder / name).stat()
        assert (folder / "disk0.vhd").stat().st_size == (1 << 30) + 512
        assert "was changed since it was opened" in status(mountpoint)["last_error"]


def test_nothing_is_looked_at_before_somebody_asks() -> None:
    disk = Counted(8 * GIB)
    folder = export_folder({"disk0": disk}, Sizing())
    files = {file.name: file for file in files_in(folder)}
    assert sorted(files) == NAMES
    assert disk.asked == 0
    assert all(file.deferred for file in files.values())
    # Nothing waits here, because nothing is ready.
    assert all(file.content.read_if_ready(0, 512) is None for file in files.values())  # type: ignore[attr-defined]
    assert disk.asked == 0
    assert files["disk0.vhd"].content.size == 8 * GIB + 512
    assert disk.asked == 0, "the size of a fixed disk needs no map"
    assert files["disk0.vhdx"].content.size == 4 * MIB
    asked = disk.asked
    assert asked > 0
    assert files["disk0.vhdx"].content.read_at(0, 8) == b"vhdxfile"
    assert disk.asked == asked, "the layout is made once"


def test_two_who_ask_at_once_get_one_layout() -> None:
    disk = Counted(64 * MIB)
    disk.gate.clear()
    file = ExportedFile(Layout(disk, "vhd", "dynamic", "disk0-dynamic.vhd"), "disk0-dynamic.vhd")
    with ThreadPoolExecutor(4) as pool:
        sizes = [pool.submit(lambda: file.size) for _ in range(4)]
        time.sleep(0.05)
        disk.gate.set()
        assert {size.result(10) for size in sizes} == {2048 + 512}
    assert disk.asked == 1


@pytest.mark.parametrize(
    ("size", "missing"),
    [
        (2040 * GIB, set()),
        (2040 * GIB + 1, {"disk0.vhd", "disk0-dynamic.vhd"}),
        (62 * TIB + 1, {"disk0.vhd", "disk0-dynamic.vhd", "disk0.vmdk", "disk0-flat.vmdk"}),
        (64 * TIB + 1, set(NAMES)),
    ],
)
def test_a_disk_that_is_too_large_for_a_format_lacks_that_file(size: int, missing: set[str]) -> None:
    folder = export_folder({"disk0": Counted(size)}, Sizing())
    assert {file.name for file in files_in(folder)} == set(NAMES) - missing
    for file in files_in(folder):
        if file.name != "disk0-dynamic.vhd":
            assert file.content.size


def test_every_disk_has_its_own_files(tmp_path: Path) -> None:
    folder = export_folder({"disk0": Counted(MIB), "disk3": Counted(MIB)}, Sizing())
    names = {file.name for file in files_in(folder)}
    assert names == {*NAMES, *(name.replace("disk0", "disk3") for name in NAMES)}


def test_the_folder_is_part_of_the_tree_also_without_disks(tmp_path: Path) -> None:
    (tmp_path / "disk.raw").write_bytes(bytes(MIB))
    with open_source(str(tmp_path / "disk.raw")) as opened:
        tree = build_tree(opened)
        assert [node.name for node in tree][1:5] == ["disk0.raw", "disk0.json", "source", "export"]
