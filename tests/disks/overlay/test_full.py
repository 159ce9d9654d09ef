"""An overlay on a file system that is really full."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from diskfs.disks.opening import open_source
from diskfs.disks.overlay import OverlayDisk, OverlayFolder
from diskfs.errors import OutOfSpace
from tests.helpers import assert_same_bytes

MIB = 1 << 20
SIZE = 32 * MIB

pytestmark = pytest.mark.root


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    where = tmp_path / "small"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8M", "tmpfs", str(where)], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", str(where)], check=True)


def _fill(disk: OverlayDisk, expected: bytearray) -> int:
    """Write and flush until there is no room; returns where."""
    for offset in range(0, SIZE, MIB):
        try:
            disk.write_at(offset, b"\2" * MIB)
        except OutOfSpace:
            return offset
        disk.flush()
        expected[offset : offset + MIB] = b"\2" * MIB
    return SIZE


def test_a_full_file_system_is_reported_and_once_there_is_room_writing_goes_on(small: Path, tmp_path: Path) -> None:
    image = tmp_path / "disk.raw"
    image.write_bytes(b"\1" * SIZE)
    expected = bytearray(b"\1" * SIZE)
    with open_source(str(image), format_name="raw") as source:
        with OverlayFolder.open(small / "overlay", source) as overlay:
            disk = overlay.disk(0)
            full = _fill(disk, expected)
            assert 6 * MIB <= full < 8 * MIB
            # Of the write that failed each sector is old or new.
            left = disk.read_at(full, MIB)
            assert {left[start : start + 512] for start in range(0, MIB, 512)} <= {b"\1" * 512, b"\2" * 512}
            expected[full : full + MIB] = left
            # What was written before is safe and can be written over.
            disk.write_at(5, b"over")
            expected[5:9] = b"over"
            disk.flush()
            assert_same_bytes(disk.read_at(0, SIZE), expected)
            disk.discard(MIB, 4 * MIB)
            expected[MIB : 5 * MIB] = bytes(4 * MIB)
            for offset in range(20 * MIB, 23 * MIB, MIB):
                disk.write_at(offset, b"\3" * MIB)
                expected[offset : offset + MIB] = b"\3" * MIB
            disk.flush()
            assert_same_bytes(disk.read_at(0, SIZE), expected)
        assert list(OverlayFolder.check(small / "overlay")) == []
        with OverlayFolder.open(small / "overlay", source) as overlay:
            assert_same_bytes(overlay.disk(0).read_at(0, SIZE), expected)


def test_a_folder_that_does_not_fit_is_refused_and_can_be_made_later(small: Path, tmp_path: Path) -> None:
    image = tmp_path / "disk.raw"
    image.write_bytes(b"\1" * SIZE)
    with (small / "filler").open("wb", buffering=0) as filler:
        while (small / "filler").stat().st_size < 16 * MIB:
            try:
                filler.write(bytes(4096))
            except OSError:
                break
    with open_source(str(image), format_name="raw") as source:
        with pytest.raises(OutOfSpace, match="overlay: No space left on device; free some room there"):
            OverlayFolder.open(small / "overlay", source)
        (small / "filler").unlink()
        with OverlayFolder.open(small / "overlay", source) as overlay:
            overlay.disk(0).write_at(0, b"fits")
