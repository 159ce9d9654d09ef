"""Converting to raw: another program's image, the content that the same program reads from it."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuse.mounting import environment, run
from tests.helpers import assert_same_bytes

KIB = 1 << 10
MIB = 1 << 20


def diskfs(*arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [sys.executable, "-m", "diskfs", *map(str, arguments)],
        env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == code, (result.returncode, result.stderr)
    return result


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A disk of 20 MiB and 5 sectors: data at both ends, a run of zeroes inside data, and holes."""
    path = tmp_path / "disk.raw"
    run("qemu-img", "create", "-f", "raw", path, str(20 * MIB + 5 * 512))
    run("qemu-io", "-f", "raw", "-c", "write -P 1 7M 300k", "-c", "write -P 2 0 64k", "-c", "write -P 3 20M 2560",
        "-c", "write -P 0 7232k 32k", "-c", "write -P 4 64512 1k", path)  # fmt: skip
    return path


@pytest.mark.parametrize("form", ["streamOptimized", "monolithicSparse", "monolithicFlat"])
def test_a_vmdk_by_qemu_becomes_the_raw_disk_that_it_was_made_of(form: str, raw: Path, tmp_path: Path) -> None:
    image, out = tmp_path / "disk.vmdk", tmp_path / "out.raw"
    run("qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", f"subformat={form}", raw, image)
    diskfs("convert", image, out, "--verify")
    assert_same_bytes(out.read_bytes(), raw.read_bytes())


def test_zero_blocks_inside_data_become_holes(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.raw"
    diskfs("convert", raw, out)
    assert out.stat().st_blocks * 512 <= (300 - 32 + 64 + 1 + 4 + 8) * KIB
