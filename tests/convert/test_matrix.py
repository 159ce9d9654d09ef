"""A short tier of scripts/matrix, and proof that it would see what it looks for."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.matrixlib import converting
from scripts.matrixlib.converting import VARIANTS, rows
from scripts.matrixlib.judging import Wrong, diskfs, judge
from scripts.matrixlib.odd import ODD
from scripts.matrixlib.subject import Subject
from tests.helpers import ROOT

SOME = [
    "odd: 0 bytes",
    "odd: a grain and +1",
    "odd: 4096-byte sectors",
    "odd: last block partial, the only data",
    "sample: vhdx, qemu dynamic",
    "corpus: appliances/two-disks.ova",
    "corpus: hostile/recipes/mut-vhd-bat-past-eof.vhd",
]


@pytest.mark.fuse
@pytest.mark.timeout(240)
def test_a_disk_of_each_kind_as_every_variant_is_what_other_programs_read(corpus: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "matrix"), "--json", "--corpus", str(corpus), "--jobs", "1"]
    only = [word for name in SOME for word in ("--only", name)]
    result = subprocess.run([*command, *only], capture_output=True, text=True, check=False, timeout=200)
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads(result.stdout)
    # Each disk as every variant; the appliance has two, and is written as a whole too.
    assert len(found) == (len(SOME) + 1) * len(VARIANTS) + 1
    verdicts = [row["verdict"].split(":")[0] for row in found]
    assert verdicts.count("fails as it must") == len(VARIANTS)
    assert verdicts.count("refused by name") == len(VARIANTS) - 1
    assert "diskfs, vhdimount" in verdicts
    assert "sha256sum, diskfs, qemu-img, check" in verdicts


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    return ODD["a grain and +512"]("odd: a grain and +512", tmp_path)


@pytest.mark.parametrize(("format_name", "variant"), [("raw", "raw"), ("vmdk", "monolithicFlat"), ("vhd", "fixed")])
def test_one_wrong_byte_is_seen(format_name: str, variant: str, subject: Subject, tmp_path: Path) -> None:
    target = tmp_path / f"out.{format_name}"
    code, said = diskfs("convert", "--quiet", subject.source, target, "--variant", variant)
    assert code == 0, said
    assert judge(subject, format_name, variant, target) == "diskfs, qemu-img"
    stored = tmp_path / "out-flat.vmdk" if variant == "monolithicFlat" else target
    data = bytearray(stored.read_bytes())
    data[40_000] ^= 1
    stored.write_bytes(data)
    with pytest.raises(Wrong, match="diskfs compare"):
        judge(subject, format_name, variant, target)


def test_a_content_that_differs_from_the_raw_one_is_seen_by_each_judge(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out.vmdk"
    diskfs("convert", "--quiet", subject.source, target)
    assert subject.raw is not None
    with subject.raw.open("r+b") as file:
        file.seek(-1, 2)
        byte = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(Wrong, match="diskfs compare with the raw content"):
        judge(subject, "vmdk", "streamOptimized", target)
    monkeypatch.setattr("scripts.matrixlib.judging.diskfs", lambda *_: (0, ""))
    with pytest.raises(Wrong, match="qemu-img compare"):
        judge(subject, "vmdk", "streamOptimized", target)


def test_what_qemu_img_check_finds_is_seen(subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out.vmdk"
    diskfs("convert", "--quiet", subject.source, target, "--variant", "monolithicSparse")
    assert "check" in judge(subject, "vmdk", "monolithicSparse", target)
    # A grain that the table has, and the file has not.
    with target.open("r+b") as file:
        file.truncate(target.stat().st_size - 65536)
    monkeypatch.setattr("scripts.matrixlib.judging.diskfs", lambda *_: (0, ""))
    with pytest.raises(Wrong, match="qemu-img"):
        judge(subject, "vmdk", "monolithicSparse", target)


def test_a_conversion_that_fails_is_wrong(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converting, "diskfs", lambda *_: (1, "diskfs: no"))
    found = rows("odd: full", corpus, tmp_path, 1 << 30)
    assert [row.good for row in found] == [False] * len(VARIANTS)
    assert found[0].verdict == "WRONG: convert: diskfs: no"
