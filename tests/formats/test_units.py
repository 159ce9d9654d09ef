"""Checking every stored unit: holes of the file are passed over, what lies around them is not."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from diskfs_formats.driver import ImageInfo
from diskfs_formats.errors import CorruptImage
from diskfs_formats.extents import Extent, ExtentKind, Stored
from diskfs_formats.mapped import MappedImage
from diskfs_formats.source import MemorySource
from diskfs_formats.units import STEP, check_units
from tests.fuse.mounting import diskfs

MIB = 1 << 20
SIZE = 64 * MIB
UNIT = 16 * MIB


class HoleySource(MemorySource):
    """A file that is all hole but for the first and the last MiB of each unit. Some reads fail."""

    def __init__(self, damaged: range = range(0)) -> None:
        super().__init__(bytes(SIZE), "holey")
        self.reads: list[tuple[int, int]] = []
        self.damaged = damaged

    def read_at(self, offset: int, length: int, /) -> bytes:
        self.reads.append((offset, length))
        if offset < self.damaged.stop and offset + length > self.damaged.start:
            raise CorruptImage("holey: it cannot be read")
        return super().read_at(offset, length)

    def data_ranges(self, offset: int, length: int, /) -> Iterator[tuple[int, int, bool]]:
        end = offset + length
        while offset < end:
            is_data = (offset + MIB) % UNIT < 2 * MIB
            border = offset - offset % UNIT + (UNIT - MIB if not is_data and offset % UNIT < UNIT - MIB else UNIT)
            if is_data and offset % UNIT < MIB:
                border = offset - offset % UNIT + MIB
            yield offset, min(border, end) - offset, is_data
            offset = border


class Units(MappedImage):
    """Plain units of 16 MiB, stored in their order."""

    def __init__(self, source: HoleySource) -> None:
        super().__init__("units", ImageInfo("test", "test", SIZE, unit_size=UNIT), (source,))
        self.source = source

    def lookup(self, offset: int, /) -> Extent:
        start = offset - offset % UNIT
        return Extent(start, UNIT, ExtentKind.DATA, Stored(self.source, start, UNIT))


def test_only_what_is_no_hole_is_read() -> None:
    source = HoleySource()
    assert list(check_units(Units(source), "rule")) == []
    assert sum(length for _, length in source.reads) == 2 * MIB * (SIZE // UNIT)
    assert max(length for _, length in source.reads) <= STEP


@pytest.mark.parametrize("place", [0, MIB - 1, UNIT - MIB, UNIT - 1, 3 * UNIT, SIZE - 1])
def test_what_lies_beside_a_hole_is_read(place: int) -> None:
    (finding,) = check_units(Units(HoleySource(range(place, place + 1))), "rule")
    assert finding.message == "holey: it cannot be read"


def test_a_fixed_disk_that_is_all_hole_costs_nothing_to_verify(tmp_path: Path) -> None:
    raw = tmp_path / "disk.raw"
    raw.touch()
    os.truncate(raw, 64 << 30)
    for name, output in (("disk.vhdx", "vhdx"), ("disk.vhd", "vhd")):
        target = tmp_path / name
        diskfs("convert", "-O", output, "--variant", "fixed", raw, target)
        assert "sound" in diskfs("verify", target, timeout=10).stdout
