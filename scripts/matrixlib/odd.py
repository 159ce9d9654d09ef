"""Disks whose size is no multiple of grain, block or sector, and the ends of what formats hold."""

import random
from collections.abc import Callable
from pathlib import Path

from scripts.matrixlib.subject import SECTOR, Subject
from tests.samples.vhdx_builder import GIB, KIB, MIB, TIB, VhdxBuilder, pattern

GRAIN, BLOCK = 64 * KIB, 2 * MIB


def _sparse(size: int, *runs: tuple[int, int]) -> Callable[[str, Path], Subject]:
    """A raw disk with random data in some runs, offset and length, cut at its end."""

    def make(name: str, folder: Path) -> Subject:
        path, raw = folder / "disk.raw", folder / "content-of-disk"
        for each in (path, raw):
            chance = random.Random(size)
            with each.open("wb") as file:
                for offset, length in runs:
                    file.seek(offset)
                    file.write(chance.randbytes(min(length, size - offset)))
                file.truncate(size)
        return Subject(name, path, ("--format", "raw"), size, raw=raw, basis="the file itself")

    return make


def _ends(size: int) -> Callable[[str, Path], Subject]:
    """Data at both ends and in the middle."""
    return _sparse(size, (0, 3000), (size // 2, 70_000), (max(0, size - 700), 700))


def _of_4096(size: int) -> Callable[[str, Path], Subject]:
    """A VHDX of 4096-byte sectors, packed from the specification."""

    def make(name: str, folder: Path) -> Subject:
        builder = VhdxBuilder(size, sector_size=4096)
        path, raw = folder / "disk.vhdx", folder / "content-of-disk"
        last = (size - 1) // MIB
        with raw.open("wb") as file:
            for block in sorted({0, last // 2, last}):
                data = pattern(block)
                builder.put(block, data)
                file.seek(block * MIB)
                file.write(data)
            file.truncate(size)
        path.write_bytes(builder.build())
        return Subject(name, path, (), size, 4096, raw, basis="the sample's own bytes")

    return make


ODD: dict[str, Callable[[str, Path], Subject]] = {
    "0 bytes": _sparse(0),
    "1 byte": _sparse(1, (0, 1)),
    **{f"{size} bytes": _ends(size) for size in (511, 512, 513, 4095, 4096, 4097)},
    **{f"a grain and {more:+}": _ends(GRAIN + more) for more in (-512, -1, 0, 1, 512)},
    **{f"two blocks and {more:+}": _ends(2 * BLOCK + more) for more in (-512, -1, 0, 1, 512)},
    "a grain table and a sector": _ends(512 * GRAIN + 512),
    "all zero": _sparse(6 * MIB),
    "full": _sparse(9 * MIB, (0, 9 * MIB)),
    "full, last grain partial": _sparse(4 * MIB + 37 * SECTOR, (0, 5 * MIB)),
    "last grain partial, the only data": _sparse(4 * MIB + 512, (4 * MIB, 512)),
    "last block partial, the only data": _sparse(5 * MIB + 77 * SECTOR, (5 * MIB + 76 * SECTOR, 512)),
    "a hole of one sector": _sparse(3 * MIB, (0, MIB), (MIB + 512, 2 * MIB - 512)),
    "1 TiB, sparse": _sparse(TIB, (0, 4096), (TIB // 2 - 2048, 4096), (TIB - 4096, 4096)),
    "2040 GiB, sparse": _sparse(2040 * GIB, (0, 4096), (2040 * GIB - 512, 512)),
    "2040 GiB and a sector, sparse": _sparse(2040 * GIB + 512, (0, 4096), (2040 * GIB, 512)),
    "4096-byte sectors": _of_4096(9 * MIB + 4096),
    "4096-byte sectors, whole blocks": _of_4096(8 * MIB),
}
"""Name -> makes the disk in an empty folder."""
