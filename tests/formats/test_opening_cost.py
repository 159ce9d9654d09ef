"""What opening costs: of each file at most 16 reads and 4 MiB before the first byte of the disk, and little memory.

Every file that opening leads to is counted by itself: the image, its parents, its extents. An appliance has this for
itself and for each of its disks; an appliance of one disk keeps to the bound for one file. The index of a gzip file is
left out: it comes from reading all of it once, and is built when it is first needed.
"""

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from diskfs.disks.opening import OpenedSource, open_source
from diskfs.sources import file
from diskfs_formats.errors import DiskfsError
from diskfs_formats.ovf import MAX_DESCRIPTOR_SIZE
from diskfs_formats.source import Buffer
from diskfs_formats.tar import BLOCK, MAX_RECORDS, READ_AHEAD
from tests.helpers import ROOT, CorpusRow, corpus_rows
from tests.hostile.catalogue import Hostile, catalogue
from tests.samples.registry import SAMPLES, Sample
from tests.samples.vhdx_builder import MIB, TIB, VhdxBuilder

MAX_READS = 16
MAX_BYTES = 4 * MIB
MAX_FEW = 4
"""Members of an appliance of one disk: descriptor, manifest, certificate and the disk; one in chunks has more."""
GROWTH = 64 * MIB
GIB = 1024 * MIB
ROWS = [row for row in corpus_rows() if not row.is_member]


class CountedFile(file.FileSource):
    """A file that counts what is asked of it."""

    opened: "list[CountedFile]"

    def __init__(self, path: Path, descriptor: int) -> None:
        super().__init__(path, descriptor)
        self.reads = self.bytes_read = 0
        self.opened.append(self)

    def read_at(self, offset: int, length: int, /) -> bytes:
        self.reads += 1
        self.bytes_read += length
        return super().read_at(offset, length)

    def read_if_ready(self, offset: int, length: int, /) -> Buffer | None:
        self.reads += 1
        self.bytes_read += length
        return super().read_if_ready(offset, length)


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> list[CountedFile]:
    """Every file that a test opens, counted."""
    monkeypatch.setattr(CountedFile, "opened", [], raising=False)
    monkeypatch.setattr(file, "FileSource", CountedFile)
    return CountedFile.opened


@contextlib.contextmanager
def opened(path: Path, format_name: str | None = None) -> Iterator[OpenedSource | None]:
    """Open a location as a user does; an image that is refused has been opened as far as it goes."""
    try:
        source = open_source(str(path), format_name=format_name)
    except DiskfsError:
        yield None
        return
    try:
        yield source
    finally:
        source.close()


def require_little(files: list[CountedFile], source: OpenedSource | None = None) -> None:
    reads, size = MAX_READS, MAX_BYTES
    if source is not None and source.container is not None:
        # Several disks may lie in one file, and between them the headers of the archive's members.
        reads, size = MAX_READS * (1 + len(source.disks)), MAX_BYTES * (1 + len(source.disks))
    elif source is None and files and files[0].path.name in ("hostile.ova", "hostile.ovf"):
        # Refused for the number of its headers, which are read one after the other, or for its descriptor.
        reads, size = MAX_READS + MAX_RECORDS * BLOCK // READ_AHEAD, MAX_DESCRIPTOR_SIZE + MAX_RECORDS * BLOCK
    for each in files:
        assert each.reads <= reads, f"{each.path.name}: {each.reads} reads"
        assert each.bytes_read <= size, f"{each.path.name}: {each.bytes_read} bytes"


@pytest.mark.parametrize(
    ("driver", "sample"),
    [pytest.param(name, sample, id=f"{name}, {sample.name}") for name in SAMPLES for sample in SAMPLES[name]],
)
def test_a_sample_is_opened_with_few_reads(
    driver: str, sample: Sample, tmp_path: Path, files: list[CountedFile]
) -> None:
    made, _ = sample.make(tmp_path)
    path = made if isinstance(made, Path) else tmp_path / f"sample.{driver}"
    if isinstance(made, bytes):
        path.write_bytes(made)
    with opened(path, driver) as source:
        assert source is not None
        require_little(files)
        assert files[0].reads > 0


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.path)
def test_an_image_of_the_corpus_is_opened_with_few_reads(
    row: CorpusRow, corpus: Path, files: list[CountedFile]
) -> None:
    with opened(corpus / row.path) as source:
        require_little(files, source)
        if source is not None and source.container and len(source.disks) == 1 and len(source.members) <= MAX_FEW:
            assert files[0].reads <= MAX_READS


@pytest.mark.parametrize("case", catalogue(), ids=lambda case: case.name)
def test_a_hostile_file_is_opened_with_few_reads(case: Hostile, tmp_path: Path, files: list[CountedFile]) -> None:
    path = tmp_path / case.file_name
    case.make(path)
    with opened(path, case.format_name) as source:
        require_little(files, source)


# ---- the largest disks ----

SCRIPT = """
import itertools, json, sys, time
from pathlib import Path
from diskfs.disks.opening import open_source

def peak():
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM:"))

def use(path, form, mapped, places):
    began = time.process_time()
    with open_source(path, format_name=form) as opened:
        disk = opened.disk(0).image
        info = disk.info
        table, findings = opened.disk(0).partitions
        data = {place: disk.read_at(place, 512).hex() for place in (0, disk.size - 512, *places)}
        part = itertools.islice(disk.extents(0, min(disk.size, mapped)), 1000)
        extents = [(extent.offset, extent.length, extent.kind.value) for extent in part]
        middle = next(disk.extents(disk.size // 2, 1 << 28))
        return {"size": disk.size, "format": info.format, "data": data, "extents": extents,
                "middle": middle.kind.value, "seconds": time.process_time() - began}

warm_up, path, form, mapped, *places = sys.argv[1:]
use(warm_up, form, int(mapped), [])
Path("/proc/self/clear_refs").write_text("5")
before = peak()
result = use(path, form, int(mapped), [int(place) for place in places])
result["growth"] = peak() - before
print(json.dumps(result))
"""
PLACE = 31 * GIB + 512


def _qemu(form: str, options: str, size: int, write: bool = True) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        command = ["qemu-img", "create", "-q", "-f", form, *(["-o", options] if options else []), str(path), str(size)]
        subprocess.run(command, check=True)
        if write:
            subprocess.run(
                ["qemu-io", "-f", form, "-c", f"write -q -P 165 {PLACE} 512", path], check=True, capture_output=True
            )

    return make


def _vhdx_of_small_blocks(path: Path) -> None:
    """The longest table that there is: 64 TiB in blocks of 1 MiB, whose entries take 512 MiB."""
    builder = VhdxBuilder(64 * TIB)
    blocks = 64 * TIB // MIB
    for block in (PLACE // MIB, 0, blocks - 1, blocks // 2):
        builder.put(block, b"\xa5" * MIB)
    pieces, size = builder.all_pieces()
    with path.open("wb") as written:
        for offset, piece in pieces.items():
            written.seek(offset)
            written.write(piece)
        written.truncate(size)


def _raw(path: Path) -> None:
    with path.open("wb") as written:
        written.seek(PLACE)
        written.write(b"\xa5" * 512)
        written.truncate(15 * TIB)


LARGEST: dict[str, tuple[str, int, Callable[[Path], None], Callable[[Path], None]]] = {
    name: (form, size, make, small)
    for name, form, size, make, small in (
        (
            "62 TiB VMDK",
            "vmdk",
            62 * TIB,
            _qemu("vmdk", "subformat=monolithicSparse", 62 * TIB),
            _qemu("vmdk", "subformat=monolithicSparse", GIB, write=False),
        ),
        (
            "62 TiB stream-optimized VMDK",
            "vmdk",
            62 * TIB,
            _qemu("vmdk", "subformat=streamOptimized", 62 * TIB, write=False),
            _qemu("vmdk", "subformat=streamOptimized", GIB, write=False),
        ),
        ("64 TiB VHDX", "vhdx", 64 * TIB, _qemu("vhdx", "", 64 * TIB), _qemu("vhdx", "", GIB, write=False)),
        (
            "64 TiB VHDX in blocks of 1 MiB",
            "vhdx",
            64 * TIB,
            _vhdx_of_small_blocks,
            _qemu("vhdx", "", GIB, write=False),
        ),
        (
            "2040 GiB VHD",
            "vhd",
            2040 * GIB,
            _qemu("vpc", "force_size=on", 2040 * GIB),
            _qemu("vpc", "force_size=on", GIB, write=False),
        ),
        (
            "2040 GiB fixed VHD",
            "vhd",
            2040 * GIB,
            _qemu("vpc", "subformat=fixed,force_size=on", 2040 * GIB),
            _qemu("vpc", "subformat=fixed,force_size=on", GIB, write=False),
        ),
        (
            "1 PiB qcow2",
            "qcow2",
            1024 * TIB,
            _qemu("qcow2", "cluster_size=2M", 1024 * TIB),
            _qemu("qcow2", "", GIB, write=False),
        ),
        ("8 TiB VDI", "vdi", 8 * TIB, _qemu("vdi", "", 8 * TIB), _qemu("vdi", "", GIB, write=False)),
        ("15 TiB raw", "raw", 15 * TIB, _raw, _qemu("raw", "", GIB, write=False)),
    )
}


@pytest.mark.parametrize("name", LARGEST)
def test_the_largest_disks_open_in_little_memory(name: str, tmp_path: Path, files: list[CountedFile]) -> None:
    form, size, make, make_small = LARGEST[name]
    path, small = tmp_path / "large", tmp_path / "small"
    make(path)
    make_small(small)
    with opened(path, form) as source:
        assert source is not None
        require_little(files)
    is_written = "stream" not in name
    # qemu gives a VMDK all of its grain tables at once, 8 GiB of them, and a map of the whole has to read each.
    mapped = 64 * GIB if form == "vmdk" else size
    script = tmp_path / "open.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(small), str(path), form, str(mapped), str(PLACE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    result: dict[str, Any] = json.loads(done.stdout)
    print(f"{name}: {result['growth'] / MIB:.1f} MiB more, {result['seconds']:.2f} s")
    assert result["size"] == size
    assert result["growth"] <= GROWTH
    assert bytes.fromhex(result["data"][str(PLACE)]) == (b"\xa5" if is_written else b"\0") * 512
    end = 0
    for offset, length, _kind in result["extents"]:
        assert offset == end
        end = offset + length
    assert end == mapped
    kinds = {kind for _, _, kind in result["extents"]}
    assert kinds - {"zero", "hole"} == ({"data"} if is_written else set())
