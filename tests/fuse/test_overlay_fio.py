"""fio writes, reads back and verifies: on the file of a mounted overlay, and on file systems over a loop device on it.

The bounded part of scripts/verify-overlay-fio, which takes the sizes.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuse.mounting import ROOT, environment

pytestmark = [pytest.mark.fuse, pytest.mark.root]


def test_fio_reads_back_what_four_jobs_have_written(tmp_path: Path) -> None:
    script = ROOT / "scripts" / "verify-overlay-fio"
    command = [sys.executable, str(script), "--size", "1M", "--json", "--folder", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
    assert result.returncode == 0, result.stderr
    runs = json.loads(result.stdout)
    assert {(run["on"], run["direct"]) for run in runs} == {
        (place, direct) for place in ("file", "ext4", "xfs") for direct in (False, True)
    }
    assert all(run["read"] >= run["written"] > 0 for run in runs)
