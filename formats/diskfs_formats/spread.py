"""One request's work on several threads, as far as they have time for it."""

import itertools
import threading
from collections.abc import Callable


class Spread:
    """The work of one request, which several threads share: each takes the next item until none is left.

    A helper that comes too late finds nothing: neither is it waited for, nor does it keep the request's buffers,
    however long it lies in a queue.
    """

    def __init__(self, work: Callable[[int], None], count: int) -> None:
        """Prepare `work` on each index from 0 to `count` - 1."""
        self._work: Callable[[int], None] | None = work
        self._count = count
        self._turn = itertools.count()
        self._errors: list[BaseException] = []
        self._helping = 0
        self._is_broken = False
        """Whether a thread ended amid its work, so that an item that was taken may not be done."""
        self._changed = threading.Condition(threading.Lock())

    def help_out(self) -> None:
        """Take items, if there are any left. Raises only if this thread cannot go on, which `finish` tells as well."""
        with self._changed:
            if self._work is None:
                return
            self._helping += 1
        try:
            self._drain()
        except BaseException:
            self._is_broken = True
            raise
        finally:
            with self._changed:
                self._helping -= 1
                self._changed.notify_all()

    def finish(self) -> None:
        """Take items, and wait for those that helpers have taken; raises the first error."""
        try:
            self._drain()
            with self._changed:
                while self._helping:
                    self._changed.wait()
        except BaseException:
            # Interrupted: helpers end with the item that they are at.
            self._is_broken = True
            raise
        finally:
            with self._changed:
                self._work = None
        if self._is_broken:
            raise MemoryError("a thread that decodes could not go on")
        if self._errors:
            first = self._errors[0]
            # An error that its own traceback leads to would keep the request's buffers until a collection.
            self._errors.clear()
            try:
                raise first
            finally:
                del first

    def _drain(self) -> None:
        work = self._work
        assert work is not None
        while not self._errors and not self._is_broken and (index := next(self._turn)) < self._count:
            try:
                work(index)
            except BaseException as error:  # noqa: BLE001 - handed to the caller by `finish`
                self._errors.append(error)
