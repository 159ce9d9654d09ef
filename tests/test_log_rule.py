"""The suite's own rule that a warning in the log fails the test which did not announce it."""

import subprocess
import sys
from pathlib import Path

from tests.helpers import ROOT

QUIET = "import logging\nimport pytest\nlog = logging.getLogger('diskfs.x')\n"


def outcome_of(tmp_path: Path, test: str) -> str:
    """Run a test module under this suite's conftest.py in a process of its own; return what pytest prints."""
    (tmp_path / "conftest.py").write_text("from tests.conftest import *  # noqa\n")
    (tmp_path / "test_sample.py").write_text(QUIET + test)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--strict-markers", str(tmp_path)]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'formats'}"},
    )  # fmt: skip
    return result.stdout


def test_a_warning_nobody_announced_fails_the_test(tmp_path: Path) -> None:
    outcome = outcome_of(tmp_path, "def test_it():\n    log.warning('grain 7 is odd')\n")
    assert "1 failed" in outcome
    assert "unexpected in the log: WARNING diskfs.x: grain 7 is odd" in outcome


def test_an_info_record_passes(tmp_path: Path) -> None:
    test = "def test_it():\n    logging.getLogger().setLevel(logging.INFO)\n    log.info('grain 7')\n"
    assert "1 passed" in outcome_of(tmp_path, test)


def test_a_warning_of_a_fixture_is_found_too(tmp_path: Path) -> None:
    fixture = "@pytest.fixture\ndef thing():\n    yield\n    log.error('closing failed')\n"
    outcome = outcome_of(tmp_path, fixture + "def test_it(thing):\n    pass\n")
    assert "1 error" in outcome
    assert "closing failed" in outcome


def test_an_announced_warning_passes(tmp_path: Path) -> None:
    test = "@pytest.mark.expects_log('grain [0-9]')\ndef test_it():\n    log.warning('grain 7 is odd')\n"
    assert "1 passed" in outcome_of(tmp_path, test)


def test_an_announced_warning_covers_no_other(tmp_path: Path) -> None:
    test = "@pytest.mark.expects_log('grain')\ndef test_it():\n    log.warning('grain 7')\n    log.error('disk')\n"
    outcome = outcome_of(tmp_path, test)
    assert "1 failed" in outcome
    assert "unexpected in the log: ERROR diskfs.x: disk" in outcome


def test_an_announced_warning_that_does_not_come_fails_the_test(tmp_path: Path) -> None:
    outcome = outcome_of(tmp_path, "@pytest.mark.expects_log('grain')\ndef test_it():\n    pass\n")
    assert "1 failed" in outcome
    assert "expected in the log and not found: ['grain']" in outcome


def test_a_test_that_asks_for_caplog_looks_for_itself(tmp_path: Path) -> None:
    test = "def test_it(caplog):\n    log.warning('grain 7')\n    assert caplog.messages == ['grain 7']\n"
    assert "1 passed" in outcome_of(tmp_path, test)
