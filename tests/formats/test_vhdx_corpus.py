"""Disks that Windows and qemu left: content as other programs read it, and files that stay as they are."""

import hashlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from diskfs.sources.file import open_file
from diskfs_formats.driver import DiskImage
from diskfs_formats.extents import ExtentKind
from diskfs_formats.reading import zeroes
from diskfs_formats.source import Buffer
from diskfs_formats.vhdx import VhdxDriver
from diskfs_formats.vhdx.image import VhdxImage
from tests.helpers import CorpusRow, assert_same_bytes, corpus_rows, sha256_of
from tests.samples.vhdx_builder import GIB, MIB, ParentFiles

ROWS = [row for row in corpus_rows() if row.path.endswith(".vhdx") and row.sha256_content]
SMALL = [row for row in ROWS if (row.virtual_size or 0) <= GIB]
LARGE = [row for row in ROWS if row not in SMALL]


def opened(path: Path) -> VhdxImage:
    beside = {other.name: lambda other=other: open_file(other) for other in path.parent.glob("*.vhdx")}
    return VhdxDriver().open(open_file(path), ParentFiles(VhdxDriver(), beside))


def content(disk: DiskImage) -> Iterator[Buffer]:
    """Yield all bytes of a disk; what is not stored comes from one block of zeros."""
    for extent in disk.extents():
        if extent.kind is ExtentKind.DATA:
            for offset in range(extent.offset, extent.end, 4 * MIB):
                yield disk.read_at(offset, min(4 * MIB, extent.end - offset))
        else:
            yield from zeroes(extent.length)


def state_of(path: Path) -> tuple[str, int, int]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(4 * MIB):
            digest.update(data)
    return digest.hexdigest(), path.stat().st_size, path.stat().st_mtime_ns


@pytest.mark.parametrize("row", SMALL, ids=lambda row: row.path)
def test_the_content_is_what_other_programs_read(row: CorpusRow, corpus: Path) -> None:
    path = corpus / row.path
    before = state_of(path)
    assert before[0] == row.sha256_file
    image = opened(path)
    assert image.size == row.virtual_size
    assert image.info.variant in row.format
    assert sha256_of(content(image)) == row.sha256_content
    image.close()
    assert state_of(path) == before


@pytest.mark.slow
@pytest.mark.parametrize("row", LARGE, ids=lambda row: row.path)
def test_the_content_of_large_disks_is_what_other_programs_read(row: CorpusRow, corpus: Path) -> None:
    image = opened(corpus / row.path)
    assert image.size == row.virtual_size
    assert sha256_of(content(image)) == row.sha256_content
    image.close()


@pytest.mark.parametrize("row", LARGE, ids=lambda row: row.path)
def test_large_disks_hold_what_qemu_finds_in_them(row: CorpusRow, corpus: Path, tmp_path: Path) -> None:
    raw = tmp_path / "disk.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", str(corpus / row.path), str(raw)], check=True)
    image, reference = opened(corpus / row.path), open_file(raw)
    try:
        assert image.size == reference.size == row.virtual_size
        stored = 0
        for offset, length, is_data in reference.data_ranges(0, reference.size):
            for at in range(offset, offset + length, MIB) if is_data else ():
                count = min(MIB, offset + length - at)
                assert_same_bytes(image.read_at(at, count), reference.read_at(at, count))
                stored += count
        assert stored
        # And what is not data there is nothing here, at both ends of each extent of the map.
        for extent in image.extents():
            for at in (extent.offset, extent.end - 4096):
                assert_same_bytes(image.read_at(at, 4096), reference.read_at(at, 4096))
    finally:
        image.close()
        reference.close()
        raw.unlink()


@pytest.mark.parametrize("row", [*SMALL, *(row for row in LARGE if row.size < 64 * MIB)], ids=lambda row: row.path)
def test_verify_finds_no_fault_in_what_other_programs_wrote(row: CorpusRow, corpus: Path) -> None:
    path = corpus / row.path
    beside = {other.name: lambda other=other: open_file(other) for other in path.parent.glob("*.vhdx")}
    source = open_file(path)
    found = [finding.rule for finding in VhdxDriver().check(source, ParentFiles(VhdxDriver(), beside))]
    source.close()
    assert found == (["vhdx-log"] if "DIRTY LOG" in row.format else [])


def test_the_corpus_has_each_kind() -> None:
    if not ROWS:
        pytest.skip("there is no corpus of real images beside the repository")
    text = " ".join(row.format for row in ROWS)
    assert all(kind in text for kind in ("fixed", "dynamic", "differencing", "DIRTY LOG", "Microsoft", "QEMU"))
