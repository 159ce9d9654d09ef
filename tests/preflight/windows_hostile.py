"""Spoils the hives of a Windows and runs the rules over them: for a short test, and for `scripts/fuzz-hives`."""

import random
import struct
from collections.abc import Iterator
from pathlib import Path

from diskfs.preflight.rules.engine import Result
from tests.preflight.windows_tree import base_hive, results, tree_facts, windows_tree

CONFIG = "windows/Windows/System32/config"
PLACES = {f"{CONFIG}/{name}": name for name in ("SYSTEM", "SOFTWARE", "SAM")} | {"boot/Boot/BCD": "BCD"}
NUMBERS = (0, 1, 0x20, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
SIGNATURES = (b"nk", b"vk", b"lf", b"lh", b"li", b"ri", b"db", b"sk")


def spoiled(hive: bytes, chance: random.Random) -> bytes:
    """Return a hive that is cut off, or has bytes, numbers or signatures changed; most of it stays."""
    changed = bytearray(hive)
    if chance.random() < 0.1:
        del changed[chance.randrange(len(changed)) :]
    cells = _cells(changed)
    for _ in range(chance.randint(1, 8) if changed else 0):
        kind = chance.random()
        if kind < 0.3 or not cells:
            changed[chance.randrange(len(changed))] = chance.randrange(256)
            continue
        cell = chance.choice(cells)
        if kind < 0.4:
            changed[cell + 4 : cell + 6] = chance.choice(SIGNATURES)
        elif kind < 0.7:  # an offset or a count: one of another cell's, or an odd number
            number = chance.choice(cells) - 4096 if chance.random() < 0.5 else chance.choice(NUMBERS)
            place = cell + 4 * chance.randrange(24)
            if place + 4 <= len(changed):
                struct.pack_into("<I", changed, place, number)
        else:
            place = min(cell + chance.randrange(80), len(changed) - 1)
            changed[place] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _cells(hive: bytearray) -> list[int]:
    """Return the offsets of the cells in use, bin by bin."""
    found, offset = [], 4096 + 32
    while offset + 8 <= len(hive):
        (size,) = struct.unpack_from("<i", hive, offset)
        if hive[offset : offset + 4] == b"hbin":
            offset += 32
            continue
        if size < 0:
            found.append(offset)
        offset += max(8, abs(size))
    return found


def hostile_runs(folder: Path, seed: int, count: int) -> Iterator[dict[str, Result]]:
    """Run all rules over a Windows whose hives are spoiled, `count` times, and yield what they say."""
    windows_tree(folder).close()
    for number in range(count):
        chance = random.Random(f"{seed}-{number}")
        for place, name in PLACES.items():
            hive = base_hive(name)
            (folder / place).write_bytes(spoiled(hive, chance) if chance.random() < 0.6 else hive)
        yield results(tree_facts(folder, folder / "disk.raw"))
