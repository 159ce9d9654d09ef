"""A mount with a hundred reads that hang, and what others notice of it; run by test_remote_mount.py.

Prints what was measured as JSON. The server answers nothing from 8 MiB up to 240 MiB.
"""

import json
import mmap
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.fuse.mounting import diskfs

MIB = 1 << 20
READER = (
    "import os, sys; fd = os.open(sys.argv[1], os.O_RDONLY); print('reading', flush=True); "
    "os.pread(fd, 4096, int(sys.argv[2]))"
)


def main(url: str, mountpoint: Path) -> None:
    mountpoint.mkdir()
    diskfs("mount", url, mountpoint, "--format", "raw")
    descriptor = os.open(mountpoint / "disk0.raw", os.O_RDONLY | os.O_DIRECT)
    with mmap.mmap(-1, 4096) as buffer:
        for number in range(64):
            os.preadv(descriptor, [buffer], number * 4096)
        readers = []
        for number in range(100):
            command = [sys.executable, "-S", "-c", READER, str(mountpoint / "disk0.raw"), str((16 + 2 * number) * MIB)]
            readers.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL))
        for reader in readers:
            assert reader.stdout is not None
            reader.stdout.readline()
        time.sleep(1)
        outcome: dict[str, float] = {"hung": sum(reader.poll() is None for reader in readers)}
        times = []
        for number in range(500):
            begun = time.monotonic()
            os.preadv(descriptor, [buffer], number % 64 * 4096)
            times.append(time.monotonic() - begun)
    os.close(descriptor)
    outcome["p99"] = sorted(times)[int(len(times) * 0.99)]
    begun = time.monotonic()
    readers[0].kill()
    readers[0].wait()
    outcome["killed_reader_gone"] = time.monotonic() - begun
    for reader in readers:
        reader.kill()
        reader.wait()
    begun = time.monotonic()
    diskfs("umount", mountpoint)
    outcome["unmounted"] = time.monotonic() - begun
    json.dump(outcome, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
