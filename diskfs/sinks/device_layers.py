"""Which devices and files lie below a block device: a partition is part of a disk, a loop device shows a file.

Source: the kernel's Documentation/ABI, sysfs-dev (`/sys/dev/block/MAJOR:MINOR`), stable/sysfs-block (`partition`,
`dev`) and testing/sysfs-block-loop (`loop/backing_file`).
"""

import contextlib
import os
import stat
from pathlib import Path

_SYSFS = Path("/sys")
_MAX_LAYERS = 16
"""Loop devices over files are nested no deeper than this before the search ends."""


def share_bytes(one: os.stat_result, other: os.stat_result, sysfs: Path = _SYSFS) -> bool:
    """Tell whether writing one of two files or block devices changes the other: they are the same, or one is below the
    other. Two partitions of one disk are apart. What sysfs does not tell counts as apart. May be called by any thread.
    """
    ours, theirs = _layers(one, sysfs), _layers(other, sysfs)
    return ours[0] in theirs or theirs[0] in ours


def _layers(status: os.stat_result, sysfs: Path) -> list[tuple[str, int, int]]:
    """Return what a file or device is, and what lies below it."""
    found: list[tuple[str, int, int]] = []
    for _ in range(_MAX_LAYERS):
        if not stat.S_ISBLK(status.st_mode):
            found.append(("file", status.st_dev, status.st_ino))
            break
        found.append(("device", os.major(status.st_rdev), os.minor(status.st_rdev)))
        below = None
        with contextlib.suppress(OSError, ValueError):
            folder = (sysfs / "dev/block" / f"{found[-1][1]}:{found[-1][2]}").resolve(strict=True)
            if (folder / "partition").exists():
                folder = folder.parent
                major, minor = (folder / "dev").read_text("ascii").strip().split(":")
                found.append(("device", int(major), int(minor)))
            name = (folder / "loop/backing_file").read_bytes().removesuffix(b"\n")
            below = Path(os.fsdecode(name)).stat()
        if below is None:
            break
        status = below
    return found
