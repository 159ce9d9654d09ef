"""Fixtures and rules of all tests: the corpus, what a machine must have, and that nothing logs a warning unasked."""

import fcntl
import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.helpers import MANIFEST, STORED_CORPUS, CorpusRow, corpus_rows

# Its plugin loads it at the end of a run otherwise, and what it looks for among living objects is not found there once
# a test has frozen them (gc.freeze).
assert hypothesis.__version__

# The servers of tests are on this machine; a proxy of the machine's, if it has one, need not reach them.
for _name in [name for name in os.environ if name.lower().endswith("_proxy")]:
    del os.environ[_name]


@pytest.fixture(scope="session")
def corpus() -> Path:
    """The folder of the unpacked corpus, each file at its manifest's `path`. Tests do not write there.

    It is kept between runs, under a name that changes with the manifest.
    """
    if not MANIFEST.exists():
        pytest.skip(f"there is no corpus of real images at {STORED_CORPUS}")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diskfs-tests"
    unpacked = cache / f"corpus-{hashlib.sha256(MANIFEST.read_bytes()).hexdigest()[:16]}"
    cache.mkdir(parents=True, exist_ok=True)
    # Several processes run tests at once, and one of them unpacks for all.
    with (cache / "unpacking.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not unpacked.is_dir():
            _unpack(unpacked)
    return unpacked


def _unpack(destination: Path) -> None:
    """Unpack and verify the corpus; the folder appears only when it is complete."""
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix="unpacking-") as folder:
        complete = Path(folder) / "corpus"
        command = [sys.executable, str(STORED_CORPUS / "unpack"), str(complete)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            pytest.fail(f"the corpus could not be unpacked: {result.stderr.strip() or result.stdout.strip()}")
        complete.rename(destination)


@pytest.fixture(scope="session")
def manifest() -> list[CorpusRow]:
    """The rows of the corpus's manifest."""
    if not MANIFEST.exists():
        pytest.skip(f"there is no corpus of real images at {STORED_CORPUS}")
    return corpus_rows()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "expects_log(pattern, ...): log records of level warning or above that match are part of what is tested; "
        "each pattern must occur",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run, with the reason."""
    missing = dict(_missing())
    for item in items:
        for marker in item.iter_markers():
            if marker.name in missing:
                item.add_marker(pytest.mark.skip(reason=missing[marker.name]))


def _missing() -> Iterator[tuple[str, str]]:
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        yield "fuse", "/dev/fuse is not there or may not be used"
    elif shutil.which("fusermount3") is None:
        yield "fuse", "fusermount3 is not installed: run scripts/setup"
    if os.geteuid() != 0:
        yield "root", "needs root"


class _Recorder(logging.Handler):
    """Keeps what is logged at level warning or above during one test."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


_RECORDER = pytest.StashKey[_Recorder]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None]:
    item.stash[_RECORDER] = _Recorder()
    yield from _recorded(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    yield from _recorded(item)
    found = [record.getMessage() for record in item.stash[_RECORDER].records]
    absent = [pattern for pattern in _expected(item) if not any(re.search(pattern, message) for message in found)]
    if absent:
        pytest.fail(f"expected in the log and not found: {absent}; found: {found}", pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None]:
    yield from _recorded(item)


def _recorded(item: pytest.Item) -> Generator[None]:
    """Run one phase of a test; fail it for a warning in the log that the test did not declare.

    A test that asks for `caplog` looks at the log itself.
    """
    recorder = item.stash[_RECORDER]
    before = len(recorder.records)
    logging.getLogger().addHandler(recorder)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(recorder)
    if "caplog" in getattr(item, "fixturenames", ()):
        return
    for record in recorder.records[before:]:
        message = record.getMessage()
        if not any(re.search(pattern, message) for pattern in _expected(item)):
            pytest.fail(f"unexpected in the log: {record.levelname} {record.name}: {message}", pytrace=False)


def _expected(item: pytest.Item) -> list[str]:
    return [pattern for marker in item.iter_markers("expects_log") for pattern in marker.args]
