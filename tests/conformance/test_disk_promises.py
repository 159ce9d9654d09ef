"""The promises of every driver, on every sample; and the corpus of real images."""

import gzip
import io
import itertools
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from diskfs.sources.file import open_file
from diskfs.sources.locate import FolderFiles
from diskfs_formats.driver import DiskImage, FormatDriver, NoRelatedFiles, ProbeWindow, RelatedFiles
from diskfs_formats.errors import DiskfsError
from diskfs_formats.extents import ExtentKind
from diskfs_formats.registry import DRIVERS, detect, driver_named, open_image
from diskfs_formats.source import ByteSource, MemorySource, SourceSlice
from tests.conformance import promises
from tests.helpers import CorpusRow, assert_same_bytes, corpus_rows, sha256_of
from tests.samples.registry import SAMPLES, Sample

PIECE = 1 << 20
MAX_HASHED = 64 << 20
"""Bytes of a disk that are read to the last; a larger one must have no data, and its map says so in no time."""


@dataclass(frozen=True)
class Case:
    """One sample, made: how to open it anew, and its reference."""

    driver: FormatDriver
    data: bytes
    reference: MemorySource
    source: Callable[[], ByteSource]
    related: RelatedFiles

    def open(self) -> DiskImage:
        return self.driver.open(self.source(), self.related)


ALL = [(driver, sample) for driver, samples in SAMPLES.items() for sample in samples]


@pytest.fixture(scope="module", params=ALL, ids=[f"{driver}: {sample.name}" for driver, sample in ALL])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    name: str
    sample: Sample
    name, sample = request.param
    made, content = sample.make(tmp_path_factory.mktemp("sample"))
    if isinstance(made, Path):
        path = made
        return Case(
            driver_named(name),
            path.read_bytes(),
            MemorySource(content),
            lambda: open_file(path),
            FolderFiles(path.parent),
        )
    data = made
    return Case(driver_named(name), data, MemorySource(content), lambda: MemorySource(data, "sample"), NoRelatedFiles())


@pytest.fixture
def disk(case: Case) -> Iterator[DiskImage]:
    opened = case.open()
    yield opened
    opened.close()


def test_every_driver_has_samples() -> None:
    assert {driver.name for driver in DRIVERS} == SAMPLES.keys()
    assert all(SAMPLES.values())


def test_it_is_taken_for_what_it_is(case: Case) -> None:
    assert detect(ProbeWindow.of(case.source()), "sample") == case.driver.name


def test_what_it_says_of_itself(case: Case, disk: DiskImage) -> None:
    assert disk.size == disk.info.virtual_size == case.reference.size
    assert disk.info.format == case.driver.name
    assert disk.info.variant
    assert disk.name


def test_any_range_is_right(case: Case, disk: DiskImage) -> None:
    promises.assert_whole(disk, case.reference)
    promises.assert_random_ranges(disk, case.reference)


def test_both_sides_of_every_unit_boundary_are_right(case: Case, disk: DiskImage) -> None:
    promises.assert_both_sides(disk, case.reference, (disk.info.unit_size, disk.info.sector_size), limit=24)
    edges = {extent.offset for extent in itertools.islice(disk.extents(), 200)}
    for edge in edges:
        start = max(edge - 513, 0)
        promises.assert_range(disk, case.reference, start, min(1026, disk.size - start))


def test_the_map_ascends_covers_and_says_the_truth(case: Case, disk: DiskImage) -> None:
    promises.assert_map(disk, case.reference)


def test_past_the_end_is_refused(disk: DiskImage) -> None:
    promises.assert_past_the_end(disk)


def test_threads_read_at_once(case: Case, disk: DiskImage) -> None:
    promises.assert_threads(disk, case.reference)


def test_ready_bytes_are_right_or_not_there(case: Case, disk: DiskImage) -> None:
    promises.assert_ready_bytes(disk, case.reference)


def test_a_sound_image_has_no_error_findings(case: Case) -> None:
    source = case.source()
    found = [finding for finding in case.driver.check(source, case.related) if finding.severity.value == "error"]
    source.close()
    assert found == []


def test_closing_twice_is_harmless(case: Case) -> None:
    disk = case.open()
    disk.read_at(0, disk.size)
    disk.close()
    disk.close()


def lengths(size: int) -> list[int]:
    """Return some sixty lengths to which a file is cut: at both ends, at sector borders, and between."""
    near = {0, 1, 3, 4, 8, 511, 512, 513, 1023, 1024, 4096, 65535, 65536}
    back = {1, 2, 100, 511, 512, 513, 1023, 1024, 1025, 1536, 2048, 4096, 65536}
    spread = {size * number // 36 for number in range(36)}
    aligned = {length // 512 * 512 for length in spread}
    found = {*near, *(size - count for count in back), *spread, *list(aligned)[::2]}
    return sorted(length for length in found if 0 <= length < size)


def test_a_file_cut_short_fails_or_is_right_but_never_wrong(case: Case) -> None:
    is_raw = case.driver.name == "raw"
    for length in lengths(len(case.data)):
        try:
            disk = case.driver.open(MemorySource(case.data[:length], "cut"), case.related)
        except DiskfsError:
            continue
        # Nothing tells that a raw file is short; every other format knows its size.
        assert disk.size == (length if is_raw else case.reference.size)
        step = max(disk.info.unit_size, disk.size // 64, 512)
        for offset in range(0, disk.size, step):
            count = min(step, disk.size - offset)
            expected = case.reference.read_at(offset, count)
            for read in (disk.read_at, getattr(disk, "read_if_ready", disk.read_at)):
                try:
                    found = read(offset, count)
                except DiskfsError:
                    continue
                if found is not None:
                    assert_same_bytes(found, expected)


# ---- the corpus ----

ROWS = [
    row
    for row in corpus_rows()
    if row.format.startswith(("vmdk-sparse", "raw")) and row.sha256_content and not row.hostile
]


def source_of(row: CorpusRow, corpus: Path) -> ByteSource:
    """Open an image of the corpus; a member of an appliance where it lies, unless it is compressed there."""
    if not row.is_member:
        return open_file(corpus / row.path)
    appliance, _, member = row.path.rpartition(".d/")
    with tarfile.open(corpus / appliance) as archive:
        # A compressed member is described under the name it has once it is unpacked.
        entry = next(entry for entry in archive if entry.name in (member, f"{member}.gz"))
        if entry.size == row.size:
            return SourceSlice(open_file(corpus / appliance), entry.offset_data, entry.size, row.path)
        stored = archive.extractfile(entry)
        assert stored is not None
        return MemorySource(gzip.GzipFile(fileobj=io.BytesIO(stored.read())).read(), row.path)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.path)
def test_content_of_the_corpus(row: CorpusRow, corpus: Path) -> None:
    # A guest's file system may look like another format: the row says which it is.
    format_name = "raw" if row.format.startswith("raw") else None
    disk = open_image(source_of(row, corpus), format_name=format_name)
    try:
        assert disk.size == row.virtual_size
        if disk.size <= MAX_HASHED:
            pieces = (disk.read_at(at, min(PIECE, disk.size - at)) for at in range(0, disk.size, PIECE))
            assert sha256_of(pieces) == row.sha256_content
        else:
            assert not row.has_data
            for extent in disk.extents():
                if extent.kind is ExtentKind.DATA:
                    assert not disk.read_at(extent.offset, extent.length).strip(b"\0")
            assert disk.read_at(disk.size - PIECE, PIECE) == bytes(PIECE)
    finally:
        disk.close()


def test_the_corpus_is_not_passed_over(manifest: list[CorpusRow]) -> None:
    assert len(manifest) > 100
    assert len(ROWS) > 40
    assert sum(row.has_data for row in ROWS) > 15
