"""Work on a long row of items by several threads, in bounded memory.

Items are taken from an iterator one at a time, by whichever thread is free: no queue is filled, and nothing is handed
from thread to thread but results.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

MEMORY_BUDGET = 96 << 20
"""Bytes that the items in work may take together, whatever the number of cores."""
_AHEAD = 4
"""Results per thread that wait for those before them, at most."""


def default_threads() -> int:
    """Return the number of cores this process may use."""
    return max(1, len(os.sched_getaffinity(0)))


def for_each(
    items: Iterable[Item], work: Callable[[Item], None], cost: Callable[[Item], int], threads: int | None = None
) -> None:
    """Do `work` on every item, in any order. Returns when all is done; raises the first error after work has stopped.

    `cost` is the memory in bytes that work on an item takes; together it stays below MEMORY_BUDGET, but one item is
    always worked on.
    """
    count = threads or default_threads()
    if count == 1:
        for item in items:
            work(item)
        return
    with _Crew(items, work, cost, count, keep_results=False) as crew:
        crew.wait()


def in_order(
    items: Iterable[Item], work: Callable[[Item], Result], cost: Callable[[Item], int], threads: int | None = None
) -> Iterator[Result]:
    """Yield what `work` makes of each item, in the order of the items, while threads work on the next ones.

    `cost` is the memory in bytes that an item takes from when work on it begins until its result was yielded and the
    next one is asked for; together it stays below MEMORY_BUDGET, but one item is always worked on. Errors are raised
    in their place. Closing the generator stops the threads.
    """
    count = threads or default_threads()
    if count == 1:
        for item in items:
            yield work(item)
        return
    with _Crew(items, work, cost, count, keep_results=True) as crew:
        yield from crew.results()


class _Crew(Generic[Item, Result]):
    """Threads that work on one row of items."""

    def __init__(
        self,
        items: Iterable[Item],
        work: Callable[[Item], Result],
        cost: Callable[[Item], int],
        count: int,
        *,
        keep_results: bool,
    ) -> None:
        self._items = iter(items)
        self._work = work
        self._cost = cost
        self._keep_results = keep_results
        self._window = count * _AHEAD
        self._turn = threading.Lock()
        self._changed = threading.Condition()
        self._taken = 0
        self._yielded = 0
        self._in_use = 0
        self._results: dict[int, tuple[Result, int]] = {}
        self._error: BaseException | None = None
        self._error_at = 0
        self._stopped = False
        self._running = count
        self._is_waiting = False
        self._threads = [
            threading.Thread(target=self._run, name=f"diskfs-work-{number}", daemon=True) for number in range(count)
        ]

    def __enter__(self) -> "_Crew[Item, Result]":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def wait(self) -> None:
        """Wait until every item is done; raises the first error."""
        with self._changed:
            while self._running and self._error is None:
                self._changed.wait()
            if self._error is not None:
                raise self._error

    def results(self) -> Iterator[Result]:
        """Yield results in order; raises an error in its place."""
        number = 0
        while True:
            with self._changed:
                while number not in self._results:
                    if self._error is not None and number >= self._error_at:
                        raise self._error
                    if not self._running and number >= self._taken:
                        return
                    self._changed.wait()
                result, cost = self._results.pop(number)
            yield result
            del result
            number += 1
            with self._changed:
                self._yielded = number
                self._in_use -= cost
                self._changed.notify_all()

    def _run(self) -> None:
        try:
            while (taken := self._take()) is not None:
                number, item, cost = taken
                try:
                    result = self._work(item)
                except BaseException as error:  # noqa: BLE001 - handed to the caller by `wait` or `results`
                    self._fail(number, error)
                    return
                with self._changed:
                    if self._keep_results:
                        self._results[number] = (result, cost)
                        if number == self._yielded:
                            self._changed.notify_all()
                    else:
                        self._in_use -= cost
                        if self._is_waiting:
                            self._changed.notify_all()
                del result, item
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def _take(self) -> tuple[int, Item, int] | None:
        # One thread at a time asks the iterator, and only it may wait for room.
        with self._turn:
            if self._is_over():
                return None
            number = self._taken
            try:
                item = next(self._items, None)
                cost = 0 if item is None else self._cost(item)
            except BaseException as error:  # noqa: BLE001 - the same
                self._fail(number, error)
                return None
            if item is None:
                return None
            with self._changed:
                while not self._has_room(cost):
                    if self._is_over():
                        return None
                    self._is_waiting = True
                    self._changed.wait()
                self._is_waiting = False
                self._in_use += cost
                self._taken += 1
            return number, item, cost

    def _is_over(self) -> bool:
        # A method, because the checker takes it that no other thread changes what was just looked at.
        return self._stopped or self._error is not None

    def _has_room(self, cost: int) -> bool:
        if self._in_use and self._in_use + cost > MEMORY_BUDGET:
            return False
        return not self._keep_results or self._taken - self._yielded < self._window

    def _fail(self, number: int, error: BaseException) -> None:
        with self._changed:
            if self._error is None or number < self._error_at:
                self._error, self._error_at = error, number
            self._changed.notify_all()
