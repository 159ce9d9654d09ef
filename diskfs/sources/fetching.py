"""Threads that fetch: readers wait for what they bring, and can stop waiting.

A request that hangs cannot be cancelled. So requests run on threads of their own that do not keep the process alive,
and whoever waits for one is woken when the process goes away.
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress

from diskfs.clients import MAX_CONNECTIONS
from diskfs.errors import SourceError
from diskfs.retrying import STOPPING
from diskfs.sources.remote import Piece


class Fetchers:
    """Runs fetches, `limit` at a time, the urgent ones first. Threads are started when they are needed."""

    def __init__(self, limit: int = MAX_CONNECTIONS) -> None:
        self._limit = limit
        self._work: queue.PriorityQueue[tuple[int, int, Callable[[], None]]] = queue.PriorityQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._unfinished = 0
        self._number = 0
        self._open: set[Future[list[Piece]]] = set()

    def submit(self, work: Callable[[], list[Piece]], *, urgent: bool) -> "Future[list[Piece]]":
        """Run `work` on a thread; what nobody waits for yet is not urgent."""
        future: Future[list[Piece]] = Future()

        def run() -> None:
            try:
                result = work()
            except BaseException as error:  # noqa: BLE001 - handed to whoever waits
                self._settle(future, None, error)
            else:
                self._settle(future, result, None)

        with self._lock:
            if STOPPING.is_set():
                future.set_exception(SourceError("nothing is fetched any more: the process goes away"))
                return future
            self._open.add(future)
            self._number += 1
            self._work.put((0 if urgent else 1, self._number, run))
            self._unfinished += 1
            # By what is to be done, not by who waits for work: who has just taken some may not have said so yet.
            if self._threads < min(self._limit, self._unfinished):
                self._threads += 1
                threading.Thread(target=self._serve, name="diskfs-fetch", daemon=True).start()
        return future

    def _serve(self) -> None:
        while True:
            _, _, run = self._work.get()
            run()

    def _settle(self, future: "Future[list[Piece]]", result: list[Piece] | None, error: BaseException | None) -> None:
        with self._lock:
            self._open.discard(future)
            self._unfinished -= 1
        # It may have been failed by `stop` meanwhile.
        with suppress(Exception):
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result or [])

    def stop(self) -> None:
        """Fail everything that is under way: the process goes away. The threads are left to themselves."""
        STOPPING.set()
        with self._lock:
            waiting = list(self._open)
            self._open.clear()
        for future in waiting:
            with suppress(Exception):
                future.set_exception(SourceError("given up because of unmounting"))


FETCHERS = Fetchers()
"""Those of this process."""
