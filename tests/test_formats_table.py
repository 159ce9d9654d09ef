"""docs/FORMATS.md says what is true: each row is held against the samples, the corpus, the tests and the writers."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from diskfs.disks.opening import open_source
from diskfs_formats.driver import DiskImage
from diskfs_formats.errors import DiskfsError
from diskfs_formats.partitions import read_partition_table
from diskfs_formats.registry import DRIVERS, open_image, writable_variants
from diskfs_formats.source import MemorySource
from scripts.differentiallib.generating import SHAPES
from tests.helpers import ROOT, CorpusRow, corpus_rows
from tests.samples.registry import SAMPLES, Sample

DOCUMENT = ROOT / "docs" / "FORMATS.md"
QUOTED = re.compile(r"`([^`]+)`")
SAMPLE, TEST = "sample: ", "tests/"
QEMU_NAMES = {"vhd": "vpc"}
"""Names of formats that are other ones in qemu."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table, by the heads of its columns."""

    section: str
    cells: dict[str, str]

    @property
    def form(self) -> str:
        """The format or scheme."""
        return (self.cells.get("format") or self.cells["scheme"]).strip("`")

    @property
    def variants(self) -> list[str]:
        """The variants as drivers report them: what is quoted before a colon."""
        return QUOTED.findall(self.cells["variant"].partition(":")[0])

    @property
    def references(self) -> list[str]:
        """What the row was verified with."""
        return QUOTED.findall(self.cells["by which sample"])

    def __str__(self) -> str:
        what = self.cells.get("variant") or self.cells.get("what") or self.cells["what is refused"]
        return f"{self.form} {what}"[:60]


def rows() -> list[Row]:
    found = []
    for part in re.split(r"^##+ ", DOCUMENT.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        lines = [line for line in part.splitlines() if line.startswith("|")]
        if not lines or "by which sample" not in lines[0]:
            continue
        table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        found += [Row(part.splitlines()[0], dict(zip(table[0], cells, strict=True))) for cells in table[2:]]
    return found


ROWS = rows()
DISKS = [row for row in ROWS if row.section == "Read: disks"]
REFERENCES = [(row, reference) for row in ROWS for reference in row.references]
ALL_SAMPLES = [(form, sample) for form, samples in SAMPLES.items() for sample in samples]
FILES = [row for row in corpus_rows() if not row.is_member]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_every_row_says_how_it_was_verified_and_by_what(row: Row) -> None:
    assert all(row.cells.values())
    assert row.references


def test_every_driver_has_rows_and_no_variant_has_two() -> None:
    assert {row.form for row in DISKS} == {driver.name for driver in DRIVERS}
    variants = [(row.form, variant) for row in DISKS for variant in row.variants]
    assert sorted(variants) == sorted(set(variants))
    assert all(row.variants for row in DISKS)


@pytest.mark.parametrize("row", [row for row in ROWS if "written" in row.cells], ids=str)
def test_the_columns_read_and_written_are_what_the_program_does(row: Row) -> None:
    assert row.cells["read"] == "yes"
    if row not in DISKS:
        assert row.cells["written"] in {"yes", "no"}
        return
    written = {variant for variant in row.variants if variant in writable_variants(row.form)}
    assert written in (set(), set(row.variants)), "a row has variants that are written and others that are not"
    assert row.cells["written"] == ("yes" if written else "no")


def test_every_variant_that_is_written_has_a_row() -> None:
    documented = {(row.form, variant) for row in DISKS for variant in row.variants}
    assert {(driver.name, variant) for driver in DRIVERS for variant in writable_variants(driver.name)} <= documented


@pytest.mark.parametrize("row", [row for row in DISKS if "differential" in row.cells["verified how"]], ids=str)
def test_the_differential_makes_what_it_is_said_to_have_verified(row: Row) -> None:
    options = {shape.options for shape in SHAPES if shape.format == QEMU_NAMES.get(row.form, row.form)}
    assert options
    if row.form == "vmdk":
        assert all(any(f"subformat={variant}" in option for option in options) for variant in row.variants)


@pytest.mark.parametrize(
    ("row", "reference"),
    [(row, each) for row, each in REFERENCES if each.startswith(TEST)],
    ids=[f"{row}: {each}" for row, each in REFERENCES if each.startswith(TEST)],
)
def test_a_test_that_a_row_names_is_there_and_is_about_it(row: Row, reference: str) -> None:
    path, _, name = reference.partition("::")
    text = (ROOT / path).read_text(encoding="utf-8")
    functions = {node.name for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}
    assert name in functions
    if row in DISKS:
        assert [variant for variant in row.variants if f'"{variant}"' not in text] == []


@pytest.mark.parametrize(
    ("row", "reference"),
    [(row, each) for row, each in REFERENCES if each.startswith(SAMPLE)],
    ids=[f"{row}: {each}" for row, each in REFERENCES if each.startswith(SAMPLE)],
)
def test_a_sample_that_a_row_names_is_of_its_variant(row: Row, reference: str, tmp_path: Path) -> None:
    (sample,) = [each for each in SAMPLES[row.form] if each.name == reference.removeprefix(SAMPLE)]
    assert [variant_of(row.form, sample, tmp_path)] == row.variants


@pytest.mark.parametrize(
    ("row", "path"),
    [(row, each) for row, each in REFERENCES if not each.startswith((SAMPLE, TEST))],
    ids=[f"{row}: {each}" for row, each in REFERENCES if not each.startswith((SAMPLE, TEST))],
)
def test_an_image_that_a_row_names_is_what_the_row_says(row: Row, path: str, corpus: Path) -> None:
    if row.section.startswith("Recognised"):
        with pytest.raises(DiskfsError, match=rf"\b{row.form.split()[0]}\b"):
            open_source(str(corpus / path))
        return
    (found,) = [each for each in FILES if each.path == path]
    with open_source(str(corpus / path), format_name=stated_format(found)) as opened:
        if row.section == "Read: disks":
            info = opened.disk(0).image.info
            assert (info.format, [info.variant]) == (row.form, row.variants)
        elif row.section == "Read: appliances":
            assert opened.container == row.form
            assert opened.disks
            assert all(disk.error is None for disk in opened.disks)
        else:
            table = read_partition_table(opened.disk(0).image)
            assert table is not None
            assert table.scheme == row.form.lower()


def test_every_variant_of_samples_and_corpus_has_a_row(corpus: Path, tmp_path: Path) -> None:
    documented = {(row.form, variant) for row in DISKS for variant in row.variants}
    made = {(form, variant_of(form, sample, tmp_path)) for form, sample in ALL_SAMPLES}
    found = {kind for row in FILES for kind in kinds_in(corpus / row.path, stated_format(row))}
    assert made <= documented
    assert found <= documented
    assert len(found) > 12


def variant_of(form: str, sample: Sample, folder: Path) -> str:
    """Make a sample and return its variant."""
    place = folder / re.sub(r"\W+", "-", f"{form} {sample.name}")
    place.mkdir()
    made, _ = sample.make(place)
    if isinstance(made, bytes):
        disk: DiskImage = open_image(MemorySource(made, "sample"), format_name=form)
        disk.close()
        return disk.info.variant
    with open_source(str(made), format_name=form) as opened:
        return opened.disk(0).image.info.variant


def stated_format(row: CorpusRow) -> str | None:
    # A guest's file system may look like another format: the manifest says that the file is a disk as it is.
    return "raw" if row.format.startswith("raw") and row.sha256_content else None


def kinds_in(path: Path, format_name: str | None) -> Iterator[tuple[str, str]]:
    """Yield format and variant of every disk of a file; nothing for one that is refused."""
    try:
        with open_source(str(path), format_name=format_name) as opened:
            for disk in opened.disks:
                if disk.error is None:
                    yield disk.image.info.format, disk.image.info.variant
    except DiskfsError:
        return
