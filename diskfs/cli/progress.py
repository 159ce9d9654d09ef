"""A progress bar on standard error, for a person at a terminal; nothing for anybody else."""

import argparse
import contextlib
import sys
import threading
import time
from collections.abc import Iterator

from diskfs_formats.writer import Progress, no_progress

_INTERVAL = 0.1
"""Seconds between two looks of the bar."""


class ProgressBars:
    """Shows a bar for each phase of the work, if standard error is a terminal and --quiet was not given.

    The bar has no colours, so NO_COLOR changes nothing.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._is_shown = not options.quiet and sys.stderr.isatty()

    @contextlib.contextmanager
    def __call__(self, title: str, total: int) -> Iterator[Progress]:
        """Begin a phase of `total` bytes; what it gives may be called by several threads."""
        if not self._is_shown:
            yield no_progress
            return
        # Slow to load, and for people only.
        from tqdm import tqdm

        lock = threading.Lock()
        done = 0
        next_look = 0.0
        with tqdm(
            total=total, desc=title, unit="B", unit_scale=True, unit_divisor=1024, file=sys.stderr, miniters=1,
            leave=False, dynamic_ncols=True, ascii=not _takes_unicode(),
        ) as bar:  # fmt: skip

            def progress(length: int, /) -> None:
                nonlocal done, next_look
                with lock:
                    done += length
                    if (now := time.monotonic()) >= next_look:
                        next_look = now + _INTERVAL
                        bar.update(done - bar.n)

            yield progress
            bar.update(done - bar.n)


def _takes_unicode() -> bool:
    return (getattr(sys.stderr, "encoding", None) or "").lower().startswith("utf")
