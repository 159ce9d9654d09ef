"""Puts the page cache into the same state before every measurement, for diskfs and for its peers."""

import os
from pathlib import Path

from benchlib.commands import BenchError, run

PIECE_SIZE = 1 << 20


def ensure_cached(path: Path) -> None:
    """Have the whole of `path` in the page cache, as an image is that was just copied or downloaded."""
    if _resident_size(path) >= path.stat().st_size:
        return
    piece = bytearray(PIECE_SIZE)
    with path.open("rb", buffering=0) as file:
        while file.readinto(piece):
            pass


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
