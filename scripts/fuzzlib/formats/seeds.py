"""Where good files come from besides the builders: the samples of the tests, and small images of the corpus."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from scripts.fuzzlib.specimen import Draft, Specimen
from tests.helpers import MANIFEST, CorpusRow, corpus_rows
from tests.samples.registry import SAMPLES

MAX_SEED = 1 << 20
"""Bytes of a seed that are not zero: a larger one is changed where it matters too rarely."""


def whole(name: str, data: bytes) -> Specimen:
    """Return a specimen whose bytes are all there, so that they can be moved."""
    return Specimen(name, Draft([(0, data)], len(data)))


def samples(driver: str, wanted: Callable[[bytes], bool] = lambda _head: True) -> Iterator[Specimen]:
    """Yield the small samples of a driver, those of other programs where they are installed."""
    for sample in SAMPLES.get(driver, ()):
        if "qemu" in sample.name and shutil.which("qemu-img") is None:
            continue
        with tempfile.TemporaryDirectory() as folder:
            made, _ = sample.make(Path(folder))
            data = made if isinstance(made, bytes) else made.read_bytes()
        if len(data) < MAX_SEED and wanted(data):
            yield whole(sample.name, data)


def corpus(
    wanted: Callable[[CorpusRow], bool], *, max_size: int = MAX_SEED, accept: Callable[[bytes], bool] | None = None
) -> Iterator[Specimen]:
    """Yield the good images of the unpacked corpus whose bytes, without long runs of zeroes, are few."""
    folder = _unpacked()
    if folder is None:
        return
    for row in corpus_rows():
        if row.hostile or row.is_member or row.size > max_size or not wanted(row):
            continue
        data = (folder / row.path).read_bytes()
        if accept is not None and not accept(data):
            continue
        if row.size < MAX_SEED:
            yield whole(row.path, data)
        elif len(draft := Draft.of(data)) < MAX_SEED:
            yield Specimen(row.path, draft)


def _unpacked() -> Path | None:
    """Return the corpus as a test run has left it unpacked; None if there is none."""
    if not MANIFEST.exists():
        return None
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diskfs-tests"
    return max(cache.glob("corpus-*"), key=lambda path: path.stat().st_mtime, default=None)
