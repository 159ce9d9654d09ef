"""The bounded part of the campaigns on mounted overlays; scripts/soak-overlay-mount and -kill run the long ones."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuse.mounting import ROOT, environment

pytestmark = [pytest.mark.fuse]


@pytest.mark.parametrize(
    ("script", "amount", "found"),
    [
        ("soak-overlay-mount", ("--runs", "500"), "500 operations"),
        ("soak-overlay-kill", ("--kills", "10"), "10 kills"),
    ],
    ids=["random operations", "kills"],
)
def test_a_campaign_in_small_finds_nothing(script: str, amount: tuple[str, ...], found: str, tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(ROOT / "scripts" / script),
        *amount,
        "--seed",
        "7",
        "--quiet",
        "--folder",
        str(tmp_path),
    ]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**environment(), "PYTHONWARNINGS": "default"}
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(found)
