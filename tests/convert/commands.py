"""Running `diskfs` in tests of conversions."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.fuse.mounting import environment, run

KIB = 1 << 10
MIB = 1 << 20


def diskfs(*arguments: object, code: int = 0) -> "subprocess.CompletedProcess[str]":
    """Run the command; check its exit code, and that a failure is one line."""
    result = subprocess.run(
        [sys.executable, "-m", "diskfs", *map(str, arguments)],
        env=environment(), capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert result.returncode == code, (result.returncode, result.stderr, result.stdout)
    if code:
        assert result.stderr.count("\n") <= 1, result.stderr
    return result


def make_raw(path: Path) -> Path:
    """A disk of 20 MiB and 5 sectors: data at both ends, a run of zeroes inside data, and holes."""
    run("qemu-img", "create", "-f", "raw", path, str(20 * MIB + 5 * 512))
    run("qemu-io", "-f", "raw", "-c", "write -P 1 7M 300k", "-c", "write -P 2 0 64k", "-c", "write -P 3 20M 2560",
        "-c", "write -P 0 7232k 32k", "-c", "write -P 4 64512 1k", path)  # fmt: skip
    return path


def partial_files(folder: Path) -> list[str]:
    """The names of temporary files in a folder."""
    return [name for name in os.listdir(folder) if name.endswith(".diskfs-part")]


def tar_members(path: Path) -> Iterator[tuple[str, int]]:
    """Name and size of each member, as tar lists them."""
    for line in run("tar", "tvf", path).splitlines():
        words = line.split()
        yield words[5], int(words[2])
