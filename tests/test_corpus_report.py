"""scripts/corpus-report prints a verdict for every image of the corpus, and sees what is wrong."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from scripts.corpuslib import expectations as expected
from scripts.corpuslib.expectations import Expected, Refusal, expectations
from scripts.corpuslib.reading import Ways, verdicts
from tests.helpers import ROOT, CorpusRow

CAT = Ways(mount=False)
WHENS: tuple[Literal["open", "read"], ...] = ("open", "read")
FLAT = "vmdk-rs/vmfs_thick.vmdk"


def report(corpus: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(ROOT / "scripts" / "corpus-report"), "--corpus", str(corpus), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)


@pytest.fixture
def all_expected(manifest: list[CorpusRow]) -> dict[str, Expected]:
    return {each.row.path: each for each in expectations(manifest)}


@pytest.fixture
def copied(corpus: Path, tmp_path: Path) -> Path:
    """A corpus of which only this disk is there, to be damaged."""
    for name in (FLAT, FLAT.replace(".vmdk", "-flat.vmdk")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((corpus / name).read_bytes())
    return tmp_path


def test_a_row_is_printed_for_each_image(corpus: Path) -> None:
    result = report(corpus, "--no-mount", "--json", "--only", "vmdk-rs/*")
    assert result.returncode == 0, result.stdout + result.stderr
    rows = {row["image"]: row for row in json.loads(result.stdout)}
    assert len(rows) == 11
    assert rows["vmdk-rs/streamOptimized.vmdk"] == {
        "image": "vmdk-rs/streamOptimized.vmdk",
        "format": "vmdk",
        "variant": "streamOptimized",
        "verdict": "hash ok (cat)",
        "good": True,
    }
    assert rows["vmdk-rs/vmfs_thick-000001.vmdk"]["verdict"].startswith("refused (cat): vmfs_thick-000001.vmdk: ")


@pytest.mark.fuse
def test_disks_of_an_appliance_and_refusals_are_read_through_the_mount_too(corpus: Path) -> None:
    for pattern, verdict in (
        ("*/vapp_with_3_vms.ova", "hash ok (cat, mount)"),
        ("cdi/cirros-snapshot1.qcow2", "refused (cat, mount): cirros-snapshot1.qcow2: its parent 'cirros.raw'"),
        ("*/mut-vhd-bat-past-eof.vhd", "read error (cat, mount): mut-vhd-bat-past-eof.vhd: block 0"),
    ):
        result = report(corpus, "--only", pattern)
        assert result.returncode == 0, result.stdout + result.stderr
        rows = [line for line in result.stdout.splitlines()[1:-1] if verdict in line]
        assert len(rows) == (3 if "ova" in pattern else 1), result.stdout


def test_a_pattern_without_images_is_no_success(corpus: Path) -> None:
    result = report(corpus, "--only", "nothing")
    assert result.returncode == 2
    assert "no image of the corpus matches 'nothing'" in result.stderr


def test_one_wrong_byte_is_seen(all_expected: dict[str, Expected], copied: Path) -> None:
    assert verdicts(all_expected[FLAT], copied, CAT)[0].good
    with (copied / FLAT.replace(".vmdk", "-flat.vmdk")).open("r+b") as file:
        file.seek(70_000)
        byte = file.read(1)[0]
        file.seek(70_000)
        file.write(bytes([byte ^ 1]))
    (found,) = verdicts(all_expected[FLAT], copied, CAT)
    assert not found.good
    assert "WRONG: cat gives" in found.verdict
    assert report(copied, "--no-mount", "--only", FLAT).returncode == 1


def test_a_refusal_of_what_has_a_digest_is_wrong(all_expected: dict[str, Expected], copied: Path) -> None:
    (copied / FLAT.replace(".vmdk", "-flat.vmdk")).unlink()
    (found,) = verdicts(all_expected[FLAT], copied, CAT)
    assert (found.good, found.verdict.split(":")[0]) == (False, "WRONG")


def test_a_refusal_for_another_reason_is_wrong(all_expected: dict[str, Expected], corpus: Path) -> None:
    recorded = all_expected["hostile/recipes/mut-vhd-blocksize0.vhd"]
    for refusal in (Refusal("CorruptImage", "another"), Refusal("UnsafeReference", "block size is 0")):
        (found,) = verdicts(dataclasses.replace(recorded, refusal=refusal), corpus, CAT)
        assert not found.good
        assert "WRONG: CorruptImage, expected" in found.verdict


def test_opening_what_must_be_refused_is_wrong(all_expected: dict[str, Expected], corpus: Path) -> None:
    for when in WHENS:
        refusal = Refusal("CorruptImage", "anything", when=when)
        (found,) = verdicts(dataclasses.replace(all_expected[FLAT], refusal=refusal), corpus, CAT)
        assert not found.good


def test_a_disk_that_is_recorded_and_not_shown_is_wrong(all_expected: dict[str, Expected], corpus: Path) -> None:
    ova = all_expected["go-vcloud-director/vapp_with_3_vms.ova"]
    digest = next(iter(ova.digests.values()))
    found = verdicts(dataclasses.replace(ova, digests={**ova.digests, "fourth.vmdk": digest}), corpus, CAT)
    assert [row.good for row in found] == [True, True, True, False]


def test_every_image_has_a_digest_or_a_refusal(all_expected: dict[str, Expected]) -> None:
    assert expected.REFUSALS.keys() <= all_expected.keys()
    assert not [path for path in expected.REFUSALS if all_expected[path].row.sha256_content]
    # Two appliances have no disk; of the third one nothing is recorded of its disk of four bytes.
    assert [path for path, each in all_expected.items() if not each.refusal and not each.digests] == [
        "vbox-validationkit/tdAppliance1-t1.ova",
        "hostile/glance/testserver.ova",
    ]
