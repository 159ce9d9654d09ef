"""The threads that fetch: as many as there is to fetch, up to the limit."""

import threading

import pytest

from diskfs.sources.fetching import Fetchers

PATIENCE = 20
"""Seconds after which what has not begun will not."""


@pytest.mark.parametrize("count", [1, 2, 8])
def test_everything_within_the_limit_is_under_way_at_once(count: int) -> None:
    for _ in range(100):
        fetchers = Fetchers(8)
        # All of them, and this thread, meet here; one that waits for another's thread would keep them from it.
        meeting = threading.Barrier(count + 1, timeout=PATIENCE)

        def work(meeting: threading.Barrier = meeting) -> list[object]:
            meeting.wait()
            return []

        futures = [fetchers.submit(work, urgent=True) for _ in range(count)]  # type: ignore[arg-type]  # brings nothing
        meeting.wait()
        assert [future.result(PATIENCE) for future in futures] == [[]] * count
        assert fetchers._threads == count


def test_no_more_threads_than_the_limit() -> None:
    fetchers, gate, lock = Fetchers(3), threading.Event(), threading.Lock()
    now, most = [0], [0]

    def work() -> list[object]:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        assert gate.wait(PATIENCE)
        with lock:
            now[0] -= 1
        return []

    futures = [fetchers.submit(work, urgent=False) for _ in range(20)]  # type: ignore[arg-type]  # brings nothing
    gate.set()
    assert all(future.result(PATIENCE) == [] for future in futures)
    assert most[0] <= 3
    assert fetchers._threads == 3


def test_one_after_the_other_needs_one_thread() -> None:
    fetchers = Fetchers(8)
    for _ in range(100):
        assert fetchers.submit(list, urgent=True).result(PATIENCE) == []
    assert fetchers._threads == 1
