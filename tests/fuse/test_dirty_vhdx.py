"""A VHDX whose log was never replayed, mounted: the disk that Windows would show, and a file that stays as it is.

The verdict on each hand-made log is that of [MS-VHDX] 8.0, section 2.3.3: the active sequence is the one with the
highest sequence numbers whose entries are all whole, and nothing else of the log counts.
"""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.formats.test_vhdx_log import BLOCKS, RING, dirty_disk, entry, place, replayable
from tests.fuse.mounting import mounted, sha256
from tests.helpers import CorpusRow, assert_same_bytes, corpus_rows
from tests.samples.vhdx_builder import MIB, Sector, VhdxBuilder, Zeros, pack_log_entry, pattern

pytestmark = pytest.mark.fuse

DIRTY = [row for row in corpus_rows() if "DIRTY LOG" in row.format and row.sha256_content]
LONG_AGO = 1_600_000_000_123_456_789
needs_qemu = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed: run scripts/setup")


def state_of(path: Path) -> tuple[str, int, int, int, int]:
    status = path.stat()
    return sha256(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def repaired(path: Path, folder: Path) -> Path:
    """Return the raw disk of a copy that qemu has replayed the log of."""
    copy, raw = folder / "repaired.vhdx", folder / "repaired.raw"
    shutil.copyfile(path, copy)
    before = hashlib.sha256(copy.read_bytes()).digest()
    subprocess.run(["qemu-img", "check", "-q", "-r", "all", copy], check=True, capture_output=True)
    assert hashlib.sha256(copy.read_bytes()).digest() != before
    subprocess.run(["qemu-img", "convert", "-f", "vhdx", "-O", "raw", copy, raw], check=True)
    return raw


def source_in(folder: Path, data: Path | bytes) -> Path:
    """Return a file that is alone in a folder, old, and that nobody may write to."""
    path = folder / "source" / "dirty.vhdx"
    path.parent.mkdir()
    if isinstance(data, bytes):
        path.write_bytes(data)
    else:
        shutil.copyfile(data, path)
    path.chmod(0o444)
    os.utime(path, ns=(LONG_AGO, LONG_AGO))
    return path


def shown(disk: Path) -> dict[int, int]:
    """Which of the five contents of `dirty_disk` each block of a mounted disk shows; zeros are left out."""
    contents = {pattern(number, 512): number for number in range(5)}
    found = {}
    with disk.open("rb") as file:
        for block in range(BLOCKS):
            data = os.pread(file.fileno(), 512, block * MIB)
            if any(data):
                found[block] = contents[data]
    return found


@needs_qemu
@pytest.mark.parametrize("row", DIRTY, ids=lambda row: row.path)
def test_a_dirty_disk_of_windows_is_mounted_as_qemu_repairs_it(row: CorpusRow, corpus: Path, tmp_path: Path) -> None:
    raw = repaired(corpus / row.path, tmp_path)
    path = source_in(tmp_path, corpus / row.path)
    before = state_of(path)
    assert before[0] == row.sha256_file
    with mounted(path, tmp_path / "mnt") as mnt:
        disk = mnt / "disk0.raw"
        assert disk.stat().st_size == raw.stat().st_size == row.virtual_size
        assert sha256(disk) == sha256(raw) == row.sha256_content
    assert state_of(path) == before
    assert before[2] == LONG_AGO
    assert list(path.parent.iterdir()) == [path]


@needs_qemu
@pytest.mark.parametrize("name", ["single", "several", "around", "two"])
def test_a_hand_made_log_is_mounted_as_qemu_repairs_it(name: str, tmp_path: Path) -> None:
    path = source_in(tmp_path, replayable()[name].build())
    raw = repaired(path, tmp_path)
    before = state_of(path)
    with mounted(path, tmp_path / "mnt") as mnt, (mnt / "disk0.raw").open("rb") as ours, raw.open("rb") as theirs:
        assert shown(mnt / "disk0.raw") != {}
        for block in range(BLOCKS):
            for offset in (block * MIB, (block + 1) * MIB - 4096):
                assert_same_bytes(os.pread(ours.fileno(), 4096, offset), os.pread(theirs.fileno(), 4096, offset))
    assert state_of(path) == before


def _wrapped(builder: VhdxBuilder) -> dict[int, int]:
    # The second entry's first sector is the ring's last, its data sector the ring's first.
    places = (RING - 12288, RING - 4096, 4096)
    builder.write_log(
        *((at, entry(builder, {0: n + 1, n: 1}, number=n + 1, tail=places[0])) for n, at in enumerate(places))
    )
    return {0: 3, 2: 1}


def _zeros(builder: VhdxBuilder) -> dict[int, int]:
    # Blocks 0 and 1 get contents 1 and 2; then the first half of content 1 is zeroed by descriptor.
    builder.write_log(
        (0, entry(builder, {0: 1, 1: 2}, number=1, tail=0)),
        (8192, pack_log_entry([Zeros(place(builder, 1), 8192)], sequence_number=2, tail=0)),
    )
    return {1: 2}


def _zeros_then_data(builder: VhdxBuilder) -> dict[int, int]:
    updates: list[Zeros | Sector] = [Zeros(builder.bat_offset, 8192), Sector(place(builder, 1), pattern(4, 4096))]
    builder.write_log(
        (0, pack_log_entry(updates, sequence_number=1, tail=0)),
        (8192, entry(builder, {3: 1}, number=2, tail=0)),
    )
    return {3: 4}


def _torn(builder: VhdxBuilder) -> dict[int, int]:
    builder.write_log(
        (0, entry(builder, {0: 1}, number=1, tail=0)),
        (8192, entry(builder, {0: 2, 5: 3}, number=2, tail=0)),
        (16384, entry(builder, {0: 3}, number=3, tail=0)[:4096] + bytes(4096)),
    )
    return {0: 2, 5: 3}


def _torn_around_the_end(builder: VhdxBuilder) -> dict[int, int]:
    tail = RING - 12288
    builder.write_log(
        (tail, entry(builder, {0: 1}, number=1, tail=tail)),
        (RING - 4096, entry(builder, {0: 2}, number=2, tail=tail)[:4096] + bytes(4096)),
    )
    return {0: 1}


def _stale_tail(builder: VhdxBuilder) -> dict[int, int]:
    # The newest entry says that the sequence begins at itself: what lies before it was flushed long ago.
    builder.write_log(
        (0, entry(builder, {7: 4}, number=1, tail=0)),
        (8192, entry(builder, {7: 3}, number=2, tail=0)),
        (16384, entry(builder, {0: 2}, number=3, tail=16384)),
    )
    return {0: 2}


def _lost_tail(builder: VhdxBuilder) -> dict[int, int]:
    # The newer sequence begins at an entry that has been overwritten, so the older one, which is whole, counts.
    builder.write_log(
        (0, entry(builder, {0: 1}, number=1, tail=0)),
        (65536, entry(builder, {0: 2}, number=12, tail=32768)),
        (65536 + 8192, entry(builder, {0: 3}, number=13, tail=32768)),
    )
    return {0: 1}


LOGS = [_wrapped, _zeros, _zeros_then_data, _torn, _torn_around_the_end, _stale_tail, _lost_tail]


@pytest.mark.parametrize("prepare", LOGS, ids=lambda prepare: prepare.__name__[1:])
def test_a_log_has_its_verdict_on_a_mount_and_stays(
    prepare: Callable[[VhdxBuilder], dict[int, int]], tmp_path: Path
) -> None:
    builder = dirty_disk()
    expected = prepare(builder)
    path = source_in(tmp_path, builder.build())
    before = state_of(path)
    with mounted(path, tmp_path / "mnt") as mnt:
        assert shown(mnt / "disk0.raw") == expected
    assert state_of(path) == before
    assert list(path.parent.iterdir()) == [path]
