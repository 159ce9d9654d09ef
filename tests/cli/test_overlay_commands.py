"""diff, commit, rollback and overlay-check: what scripts rely on. The overlays are written without a mount."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from diskfs.disks.opening import open_source
from diskfs.disks.overlay import OverlayFolder
from tests.cli.test_commands import schema
from tests.fuse.mounting import diskfs, environment, run, sha256

MIB = 1 << 20
SIZE = 16 * MIB


@pytest.fixture
def changed(tmp_path: Path) -> tuple[Path, Path, bytes]:
    """A raw disk with two partitions, its overlay with changes in both and outside, and the bytes with them."""
    raw, overlay = tmp_path / "disk.raw", tmp_path / "overlay"
    raw.touch()
    os.truncate(raw, SIZE)
    table = "start=2048, size=4MiB\nstart=10240, size=8MiB\n"
    subprocess.run(["sfdisk", "-q", raw], input=table, text=True, check=True, capture_output=True)
    expected = bytearray(raw.read_bytes())
    with open_source(str(raw)) as source, OverlayFolder.open(overlay, source) as opened:
        disk = opened.disk(0)
        for offset, data in ((8192, b"outside" * 500), (MIB, b"in p1"), (5 * MIB - 100, b"border" * 100)):
            disk.write_at(offset, data)
            expected[offset : offset + len(data)] = data
        disk.discard(6 * MIB, MIB)
        disk.flush()
    return raw, overlay, bytes(expected)


def test_diff_tells_ranges_by_partition(changed: tuple[Path, Path, bytes]) -> None:
    raw, overlay, _ = changed
    found = json.loads(diskfs("diff", "--json", overlay).stdout)
    jsonschema.validate(found, schema("diff"))
    assert found["source"] == str(raw)
    (disk,) = found["disks"]
    # Blocks of 4 KiB: one outside, one at the start of the first partition, one on each side of the border.
    assert [(entry["offset"], entry["length"], entry["kind"], entry["partition"]) for entry in disk["ranges"]] == [
        (8192, 4096, "written", None),
        (MIB, 4096, "written", 1),
        (5 * MIB - 4096, 4096, "written", 1),
        (5 * MIB, 4096, "written", 2),
        (6 * MIB, MIB, "discarded", 2),
    ]
    assert disk["ranges"][4]["partition_offset"] == MIB
    assert (disk["written"], disk["discarded"]) == (4 * 4096, MIB)
    assert disk["outside_partitions"] == {"written": 4096, "discarded": 0}
    assert [(part["number"], part["written"], part["discarded"]) for part in disk["partitions"]] == [
        (1, 8192, 0),
        (2, 4096, MIB),
    ]
    assert "p2" in diskfs("diff", overlay).stdout


def test_commit_writes_the_changed_disk_and_keeps_overlay_and_source(changed: tuple[Path, Path, bytes]) -> None:
    raw, overlay, expected = changed
    before = sha256(raw)
    target = overlay.with_name("new.raw")
    report = json.loads(diskfs("commit", "--json", "--verify", overlay, target).stdout)
    jsonschema.validate(report, schema("convert"))
    assert report["source"] == str(raw)
    assert target.read_bytes() == expected
    diskfs("commit", "--quiet", overlay, overlay.with_name("new.vhdx"))
    run("qemu-img", "compare", "-f", "raw", "-F", "vhdx", target, overlay.with_name("new.vhdx"))
    assert sha256(raw) == before
    diskfs("overlay-check", overlay)
    assert "it exists already" in diskfs("commit", overlay, target, expect=1).stderr
    assert "which is being read" in diskfs("commit", "--force", overlay, raw, expect=1).stderr
    link = overlay.parent / "link.vmdk"
    link.symlink_to(overlay / "disk0.data")
    for target in (overlay / "x.raw", link):
        assert "among the files of the overlay" in diskfs("commit", "--force", overlay, target, expect=1).stderr
    diskfs("commit", overlay, overlay.with_name("name-without-suffix"), expect=2)


def test_a_source_that_is_elsewhere_is_named_and_a_changed_one_refused(changed: tuple[Path, Path, bytes]) -> None:
    raw, overlay, expected = changed
    moved, target = raw.with_name("moved.raw"), raw.with_name("new.raw")
    raw.rename(moved)
    assert "say with --source where it is now" in diskfs("commit", overlay, target, expect=1).stderr
    diskfs("commit", "--quiet", "--source", moved, overlay, target)
    assert target.read_bytes() == expected
    os.utime(moved, (1, 1))
    message = diskfs("commit", "--source", moved, overlay, target, expect=1).stderr
    assert "was changed since" in message


def test_rollback_drops_a_damaged_overlay_too(changed: tuple[Path, Path, bytes]) -> None:
    _, overlay, _ = changed
    description = overlay / "overlay.json"
    description.write_bytes(description.read_bytes()[:-20])
    assert "it is no JSON" in diskfs("rollback", "--yes", overlay).stderr
    assert not overlay.exists()


def test_rollback_asks_and_drops(changed: tuple[Path, Path, bytes]) -> None:
    raw, overlay, _ = changed
    before = sha256(raw)
    assert "say --yes" in diskfs("rollback", overlay, expect=2).stderr
    assert asked(overlay, b"no\n") == 1
    assert overlay.exists()
    assert asked(overlay, b"yes\n") == 0
    assert not overlay.exists()
    assert sha256(raw) == before
    assert "there is no such folder" in diskfs("rollback", "--yes", overlay, expect=1).stderr


def asked(overlay: Path, answer: bytes) -> int:
    """Run rollback at a terminal, give it an answer, and return its exit code."""
    ours, its = pty.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "diskfs", "rollback", str(overlay)],
            stdin=its, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(),
        )  # fmt: skip
        os.write(ours, answer)
        _, stderr = process.communicate(timeout=60)
        assert b"Drop every change" in stderr
        return process.returncode
    finally:
        os.close(ours)
        os.close(its)


def test_overlay_check_answers_with_its_exit_code(changed: tuple[Path, Path, bytes]) -> None:
    _, overlay, _ = changed
    found = json.loads(diskfs("overlay-check", "--json", overlay).stdout)
    jsonschema.validate(found, schema("overlay-check"))
    assert found["verdict"] == "sound"
    with (overlay / "disk0.index").open("r+b") as index:
        index.seek(20)
        index.write(b"\xff")
    found = json.loads(diskfs("overlay-check", "--json", overlay, expect=3).stdout)
    jsonschema.validate(found, schema("overlay-check"))
    assert found["verdict"] == "damaged"
    assert found["findings"]
    assert "error:" in diskfs("overlay-check", overlay, expect=3).stdout
    diskfs("overlay-check", overlay / "nothing", expect=1)


def test_commands_on_an_overlay_in_use_name_who_has_it(changed: tuple[Path, Path, bytes]) -> None:
    raw, overlay, _ = changed
    with open_source(str(raw)) as source, OverlayFolder.open(overlay, source):
        for command in (
            ("diff", overlay),
            ("commit", overlay, raw.with_name("new.raw")),
            ("rollback", "--yes", overlay),
        ):
            assert f"in use by process {os.getpid()}" in diskfs(*command, expect=1).stderr


@pytest.mark.parametrize("whose", ["folder", "description"])
def test_the_overlay_of_a_stranger_does_not_say_what_is_opened(
    changed: tuple[Path, Path, bytes], whose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, overlay, _ = changed
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    theirs = overlay if whose == "folder" else overlay / "overlay.json"
    os.chown(theirs, 1234, 1234)
    target = overlay.with_name("new.raw")
    for command in (("diff", overlay), ("commit", overlay, target), ("diff", overlay, "--source", raw)):
        finished = diskfs(*command, expect=1)
        assert f"{theirs}: it belongs to user 1234, and decides which files are opened" in finished.stderr
    assert not target.exists()
    # Under sudo it is the caller's own.
    monkeypatch.setenv("SUDO_UID", "1234")
    diskfs("commit", overlay, target)
    monkeypatch.setenv("SUDO_UID", "1235")
    diskfs("diff", overlay, expect=1)
    os.chown(theirs, 0, 0)
    theirs = overlay / "overlay.json"
    for mode in (0o620, 0o602):
        theirs.chmod(mode)
        assert f"{theirs}: others may write it" in diskfs("diff", overlay, expect=1).stderr
    theirs.chmod(0o644)
    diskfs("diff", overlay)
