"""A short tier of scripts/differential, and proof that it would see what it looks for."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from diskfs_formats.mapped import MappedImage
from scripts.differentiallib.comparing import Disagreement, compare
from scripts.differentiallib.generating import LARGE, SHAPES, Shape, Specimen, generate, shape_of
from scripts.differentiallib.rules import RULES, rule_of
from tests.helpers import ROOT

FORMATS = {"vmdk", "vpc", "vhdx", "qcow2", "vdi"}
SPLIT = Shape("vmdk", "subformat=twoGbMaxExtentSparse")


def content(specimen: Specimen) -> bytes:
    raw = specimen.path.with_name("content.raw")
    command = ["qemu-img", "convert", "-f", specimen.shape.format, "-O", "raw", str(specimen.path), str(raw)]
    subprocess.run(command, check=True)
    return raw.read_bytes()


def test_every_shape_is_read_as_others_read_it() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "differential"), "--count", str(len(SHAPES)), "--no-mount"]
    # So short a run has no large images.
    result = subprocess.run(
        [*command, "--seed", "tests", "--json"], capture_output=True, text=True, check=False, timeout=240
    )
    print(result.stderr)
    assert result.returncode == 0, result.stderr
    rows = {row["format"]: row for row in json.loads(result.stdout)}
    assert rows.keys() == FORMATS | {"all"}
    assert rows["all"]["images"] == len(SHAPES)
    assert rows["all"]["unknown"] == 0
    assert rows["all"]["equal"] > len(SHAPES) // 2


@pytest.mark.parametrize("shape", [SPLIT, *SHAPES[3:4], *SHAPES[-3:]], ids=lambda shape: shape.name)
def test_an_image_is_the_same_whenever_it_is_made(shape: Shape, tmp_path: Path) -> None:
    disks = []
    for number, folder in ((1, "one"), (1, "again"), (2, "other")):
        (tmp_path / folder).mkdir()
        disks.append(content(generate(number, shape, "tests", tmp_path / folder)))
    assert disks[0] == disks[1]
    assert disks[0] != disks[2]


def test_most_images_have_data(tmp_path: Path) -> None:
    with_data = 0
    for number in range(10):
        (tmp_path / str(number)).mkdir()
        with_data += any(content(generate(number, SPLIT, "tests", tmp_path / str(number))))
    assert with_data >= 8


def test_a_wrong_byte_is_an_unknown_disagreement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    specimen = generate(1, SPLIT, "tests", tmp_path)
    assert list(compare(specimen, mount=False)) == []
    read_at = MappedImage.read_at

    def wrong(self: MappedImage, offset: int, length: int) -> bytes:
        data = bytearray(read_at(self, offset, length))
        data[-1] ^= 1
        return bytes(data)

    monkeypatch.setattr(MappedImage, "read_at", wrong)
    (found,) = compare(specimen, mount=False)
    assert (found.reader, found.what, rule_of(found)) == ("qemu-img", "content", None)


def test_no_rule_excuses_content_that_differs_from_qemu() -> None:
    for shape in (*SHAPES, *LARGE):
        specimen = Specimen(0, shape, Path("disk"), 1 << 20)
        for what in ("content", "map", "opening"):
            assert rule_of(Disagreement(specimen, "qemu-img", what, "one", "two")) is None
        assert rule_of(Disagreement(specimen, "vhdiinfo", "virtual size", "1", "2")) is None


def test_every_rule_is_decided_by_a_document_and_every_decision_has_a_rule() -> None:
    text = (ROOT / "docs" / "DIFFERENTIAL.md").read_text(encoding="utf-8")
    decisions = {part.split("\n")[0]: part for part in re.split(r"^### ", text, flags=re.MULTILINE)[1:]}
    assert [rule.id for rule in RULES] == [*decisions]
    assert all("Decided by: " in decision for decision in decisions.values())


def test_a_whole_run_has_every_shape_and_the_large_images() -> None:
    shapes = [shape_of(number, 320) for number in range(320)]
    assert {*SHAPES, *LARGE} == {*shapes}
    assert {shape.format for shape in shapes} == FORMATS
