"""Images behind a URL whose neighbours lie far apart in the file: one read asks for all of its pieces at once.

qemu-io writes the units of each image in shuffled order. The server answers nothing until it has been asked for
everything, so a reader that asks for one piece after the other never gets on.
"""

import itertools
import random
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from diskfs.disks.opening import open_source
from diskfs_formats.driver import DiskImage
from tests.helpers import assert_same_bytes
from tests.servers.faulty import FaultyServer, Request

KIB = 1 << 10
MIB = 1 << 20
PATIENCE = 20
"""Seconds after which what was not asked for will not be."""
FAR = MIB
"""Bytes between two pieces from which they are not fetched with one request, whatever is read along."""


@dataclass(frozen=True)
class Case:
    """An image of 32 MiB, written in `unit` bytes at a time; `flags` are qemu-io's for the unit of a number."""

    format: str
    unit: int
    flags: Callable[[int], str] = lambda number: ""
    offset: int = 16 * MIB
    far: int = 5
    """Pieces of a mebibyte from `offset` on that no other is near to, at least."""

    def build(self, folder: Path) -> tuple[Path, bytes]:
        """Return the image, and the bytes that it must have."""
        path = folder / f"disk.{self.format}"
        chance = random.Random(self.unit)
        commands, content = [], []
        for number in range(32 * MIB // self.unit):
            # Half of it can be compressed.
            data = chance.randbytes(self.unit // 2) + bytes([number % 255 + 1]) * (self.unit // 2)
            (folder / f"{number}").write_bytes(data)
            content.append(data)
            commands.append(f"write -q {self.flags(number)} -s {number} {number * self.unit} {self.unit}")
        chance.shuffle(commands)
        arguments = [word for command in commands for word in ("-c", command)]
        subprocess.run(["qemu-img", "create", "-q", "-f", self.format, path, "32M"], check=True, capture_output=True)
        subprocess.run(
            ["qemu-io", "-f", self.format, *arguments, path.name], check=True, capture_output=True, cwd=folder
        )
        return path, b"".join(content)


CASES = {
    "qcow2": Case("qcow2", 64 * KIB),
    "vmdk": Case("vmdk", 64 * KIB),
    # From the middle of a block to the middle of the next.
    "vhd": Case("vpc", 2 * MIB, offset=15 * MIB + 512 * KIB, far=2),
    "compressed": Case("qcow2", 64 * KIB, lambda number: "-c"),
    "mixed": Case("qcow2", 64 * KIB, lambda number: "-c" if number % 2 else ""),
}


def pieces(disk: DiskImage, offset: int) -> list[tuple[int, int]]:
    """Return where in the file a mebibyte is stored; first and last byte each. Reads the tables, but no data."""
    found = [extent.stored for extent in disk.extents(offset, MIB)]
    return sorted((stored.offset, stored.offset + stored.length - 1) for stored in found if stored)


@pytest.mark.parametrize("name", CASES)
def test_all_pieces_of_one_read_are_under_way_at_once(name: str, web: FaultyServer, tmp_path: Path) -> None:
    case = CASES[name]
    path, content = case.build(tmp_path)
    url = web.put("disk", path)
    with open_source(url) as opened:
        disk = opened.disk(0).image
        missing = pieces(disk, case.offset)
        starts = [first for first, _ in missing]
        assert 1 + sum(after - before > FAR for before, after in itertools.pairwise(starts)) >= case.far
        before = len(web.log)
        asked = threading.Event()

        def hold(_request: Request) -> bool:
            known = [request.range for request in web.log if request.range]
            if all(any(first <= at <= last for first, last in known) for piece in missing for at in piece):
                asked.set()
            return True

        web.hold = hold
        with ThreadPoolExecutor(1) as pool:
            read = pool.submit(disk.read_at, case.offset, MIB)
            all_at_once = asked.wait(PATIENCE)
            under_way = len(web.log) - before
            web.released.set()
            assert_same_bytes(read.result(), content[case.offset : case.offset + MIB])
        assert all_at_once, (
            f"{under_way} requests were under way, and not all of {missing} asked for: {web.log[before:]}"
        )
        assert under_way > 1
    assert web.counted()[""] == len(web.log)
