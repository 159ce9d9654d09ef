"""Promise 1: a mounted disk, `diskfs cat` and odd-sized `dd` give exactly the bytes that the corpus records."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuse.mounting import diskfs, environment, mounted, run, sha256
from tests.helpers import corpus_rows

pytestmark = pytest.mark.fuse

MEMBER = re.compile(r"(?P<appliance>.+\.ova)\.d/(?P<member>[^/]+)")
HASHED = 1 << 30
"""Bytes up to which a disk is hashed, mounted and piped; larger ones with DISKFS_HASH_ALL=1, which takes minutes."""
CHECKED_BY_DD = 64 << 20
"""Bytes up to which a whole disk is also read with odd block sizes, which takes a call for each block."""


def expected_disks() -> dict[str, dict[str, str]]:
    """Return, for each image or appliance of the corpus, the digest of each disk that this version reads.

    Keys are `0`, `1`, ... where the manifest numbers the disks, and member names where it names them.
    """
    found: dict[str, dict[str, str]] = {}
    for row in corpus_rows():
        if row.hostile:
            continue
        if numbered := re.findall(r"disk(\d+)=([0-9a-f]{64})", row.notes):
            found[row.path] = dict(numbered)
        elif row.sha256_content and (match := MEMBER.fullmatch(row.path)):
            found.setdefault(match["appliance"], {})[match["member"]] = row.sha256_content
        elif row.sha256_content:
            found[row.path] = {"0": row.sha256_content}
    return found


EXPECTED = expected_disks() if (Path(__file__).parents[2].parent / "shared/corpus/MANIFEST.tsv").exists() else {}


@pytest.mark.parametrize("path", sorted(EXPECTED))
def test_every_disk_of_the_corpus_reads_as_recorded(path: str, corpus: Path, tmp_path: Path) -> None:
    source = corpus / path
    disks = json.loads(diskfs("info", "--json", source).stdout)["disks"]
    numbers = {str(disk["index"]): disk for disk in disks} | {disk["name"].removesuffix(".gz"): disk for disk in disks}
    with mounted(source, tmp_path / "mnt") as mnt:
        for key, digest in EXPECTED[path].items():
            disk = numbers[key]
            file = mnt / f"disk{disk['index']}.raw"
            assert file.stat().st_size == disk["virtual_size"]
            if disk["virtual_size"] > HASHED and not os.environ.get("DISKFS_HASH_ALL"):
                check_map(source, disk["index"], file)
                check_places(file)
                continue
            assert sha256(file) == digest
            assert piped(source, disk["index"], "sha256sum").split()[0] == digest
            check_map(source, disk["index"], file)
            if disk["virtual_size"] <= CHECKED_BY_DD:
                check_dd(file, digest, tmp_path)


def piped(source: Path, index: int, *command: str) -> str:
    cat = [sys.executable, "-m", "diskfs", "cat", "--disk", str(index), str(source)]
    with subprocess.Popen(cat, stdout=subprocess.PIPE, env=environment()) as process:
        result = subprocess.run(command, stdin=process.stdout, capture_output=True, text=True, check=True)
    assert process.returncode == 0
    return result.stdout


def check_map(source: Path, index: int, file: Path) -> None:
    """The map covers the disk exactly, and what it calls zero reads as zero."""
    entries = json.loads(diskfs("map", "--json", "--disk", index, source).stdout)
    end = 0
    with file.open("rb") as disk:
        for entry in entries:
            assert entry["start"] == end
            assert entry["length"] > 0
            assert entry["data"] != entry["zero"]
            end += entry["length"]
            if entry["zero"] and entry["length"] <= 256 << 20:
                disk.seek(entry["start"])
                left = entry["length"]
                while left:
                    piece = disk.read(min(left, 4 << 20))
                    assert not piece.strip(b"\0")
                    left -= len(piece)
    assert end == file.stat().st_size


def check_places(file: Path) -> None:
    """A disk without data reads as zero, at both ends and in between."""
    if file.stat().st_blocks:
        return
    with file.open("rb") as disk:
        for place in (0, file.stat().st_size // 3, file.stat().st_size - (1 << 20)):
            disk.seek(place)
            assert not disk.read(1 << 20).strip(b"\0")


def check_dd(file: Path, digest: str, folder: Path) -> None:
    """Odd block sizes, and odd offsets that split the disk at places no unit begins."""
    size = file.stat().st_size
    for block in (65537, 100003):
        copied = subprocess.run(
            f"dd if={file} bs={block} status=none | sha256sum", shell=True, capture_output=True, text=True, check=True
        )
        assert copied.stdout.split()[0] == digest
    cut = min(size - 1, 65536 + 513)
    copy = folder / "copy"
    run("dd", f"if={file}", f"of={copy}", "bs=4099", "iflag=count_bytes", f"count={cut}", "status=none")
    run(
        "dd", f"if={file}", f"of={copy}", "bs=4099", "iflag=skip_bytes", "oflag=seek_bytes", f"skip={cut}",
        f"seek={cut}", "conv=notrunc", "status=none",
    )  # fmt: skip
    assert sha256(copy) == digest
    os.unlink(copy)


def test_cat_reads_any_range(corpus: Path) -> None:
    source = corpus / "vmdk-rs/streamOptimized.vmdk"
    whole = subprocess.run(
        [sys.executable, "-m", "diskfs", "cat", str(source)], env=environment(), capture_output=True, check=True
    ).stdout
    for offset, length in ((0, 1), (65535, 2), (65536, 65536), (len(whole) - 1, 1), (12345, 3 << 20), (len(whole), 0)):
        part = subprocess.run(
            [sys.executable, "-m", "diskfs", "cat", "--offset", str(offset), "--length", str(length), str(source)],
            env=environment(), capture_output=True, check=True,
        ).stdout  # fmt: skip
        assert part == whole[offset : offset + length]


def test_cat_past_the_end_is_refused(corpus: Path) -> None:
    result = diskfs("cat", "--offset", 1, "--length", 10485760, corpus / "vmdk-rs/streamOptimized.vmdk", expect=1)
    assert "10485760" in result.stderr


def test_a_damaged_grain_fails_its_own_reads_and_no_other(corpus: Path, tmp_path: Path) -> None:
    # Cut in the middle of a grain: what lies before it still reads, as in the image that was cut.
    source = corpus / "hostile/recipes/mut-streamopt-truncated-mid-grain.vmdk"
    with (
        mounted(source, tmp_path / "cut") as cut,
        mounted(corpus / "vmdk-rs/streamOptimized.vmdk", tmp_path / "whole") as whole,
    ):
        entries = json.loads(diskfs("map", "--json", corpus / "vmdk-rs/streamOptimized.vmdk").stdout)
        stored = [(entry["start"], entry["start"] + entry["length"]) for entry in entries if entry["data"]]
        good = bad = 0
        one = os.open(cut / "disk0.raw", os.O_RDONLY)
        two = os.open(whole / "disk0.raw", os.O_RDONLY)
        for offset in range(0, 10485760, 65536):
            expected = os.pread(two, 65536, offset)
            try:
                assert os.pread(one, 65536, offset) == expected
                good += 1
            except OSError:
                assert any(start <= offset < end for start, end in stored), "a hole cannot be damaged"
                bad += 1
        os.close(one)
        os.close(two)
        assert good
        assert bad
        assert os.listdir(cut)
    assert diskfs("verify", source, expect=3).stdout
