"""Puts the page cache into the same state before every measurement, for diskfs and for its peers."""

import contextlib
import mmap
import os
import sys
from pathlib import Path

from benchlib.commands import BenchError, run

PIECE_SIZE = 1 << 20
CLAIMED = 6 << 30
"""Bytes that are claimed: more than any work measured here writes."""
_POPULATED = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE


def ensure_cached(path: Path) -> None:
    """Have the whole of `path` in the page cache, as an image is that was just copied or downloaded."""
    if _resident_size(path) >= path.stat().st_size:
        return
    piece = bytearray(PIECE_SIZE)
    with path.open("rb", buffering=0) as file:
        while file.readinto(piece):
            pass


def claim_free_memory() -> None:
    """Take free memory and give it back, so that whoever comes next finds it in one state.

    A virtual machine hands memory that has been free for some seconds back to its host, and getting it again costs more
    than copying into it: a conversion's kernel time was 1 s or 8 s by that alone.
    """
    with open("/proc/meminfo", encoding="ascii") as lines:  # noqa: PTH123
        numbers = {name: int(rest.split()[0]) << 10 for name, rest in (line.split(":") for line in lines)}
    size = min(CLAIMED, numbers["MemFree"] * 3 // 4) // mmap.PAGESIZE * mmap.PAGESIZE
    if size:
        with contextlib.suppress(BenchError):  # A container may have less than the machine.
            run([sys.executable, "-c", f"import mmap; mmap.mmap(-1, {size}, flags={_POPULATED})"])


def drop(path: Path) -> None:
    """Take the pages of a mounted file out of the page cache; those of the image behind it stay.

    Opening alone does not do it: a server may allow the kernel to keep the pages of a file that is opened again.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
    left = _resident_size(path)
    if left:
        raise BenchError(f"{path}: {left} bytes stay in the page cache; is another program reading the mount?")


def _resident_size(path: Path) -> int:
    return int(run(["fincore", "--bytes", "--noheadings", "--output", "RES", path]).stdout)
