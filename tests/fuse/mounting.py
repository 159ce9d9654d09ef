"""Real mounts in tests: the command in a child process, and nothing left behind whatever happens."""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def environment() -> dict[str, str]:
    """Return an environment in which `python -m diskfs` runs this checkout."""
    return {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'formats'}", "PYTHONWARNINGS": "error"}


def diskfs(*arguments: object, expect: int = 0, timeout: float = 120) -> "subprocess.CompletedProcess[str]":
    """Run the command and check its exit code."""
    result = subprocess.run(
        [sys.executable, "-m", "diskfs", *map(str, arguments)],
        capture_output=True, text=True, env=environment(), timeout=timeout, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert result.returncode == expect, f"{arguments}: exit {result.returncode}: {result.stderr}{result.stdout}"
    return result


@contextlib.contextmanager
def mounted(source: Path | str, mountpoint: Path, *options: object) -> Iterator[Path]:
    """Mount with the real command, and unmount with the real command."""
    # It may be there already, also as a dead mount that is to be repaired.
    with contextlib.suppress(OSError):
        os.mkdir(mountpoint)
    diskfs("mount", *options, source, mountpoint)
    try:
        yield mountpoint
    except BaseException:
        subprocess.run(["fusermount3", "-u", "-z", mountpoint], check=False, capture_output=True)
        raise
    diskfs("umount", mountpoint)
    assert not os.listdir(mountpoint)
    assert str(mountpoint) not in Path("/proc/self/mountinfo").read_text()


def status(mountpoint: Path) -> dict[str, Any]:
    """Return the mount's own account of itself."""
    found: dict[str, Any] = json.loads((mountpoint / ".diskfs.json").read_bytes())
    return found


def sha256(path: Path) -> str:
    """Return the digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run(*command: object, expect: int = 0) -> str:
    """Run a system tool and return what it printed."""
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert result.returncode == expect, f"{command}: exit {result.returncode}: {result.stderr}{result.stdout}"
    return result.stdout
