"""The table in docs/PREFLIGHT.md is what the rules, the checks and the tests make it."""

import subprocess
import sys

from diskfs.preflight.rules.catalogue import rules
from tests.helpers import ROOT


def test_the_table_is_current() -> None:
    result = subprocess.run(
        [sys.executable, ROOT / "scripts/rules-table", "--check"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    document = (ROOT / "docs/PREFLIGHT.md").read_text()
    assert all(document.count(f"\n| {rule_id} |") == 1 for rule_id in rules())
