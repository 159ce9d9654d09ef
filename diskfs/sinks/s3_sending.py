"""Sending parts side by side, with a bound on what waits to be sent.

The threads do not keep the process alive: a request that hangs must not keep a command from ending.
"""

import threading
from collections import deque
from collections.abc import Callable

from diskfs.sinks.s3_parts import Part

MAX_THREADS = 8
"""Parts on their way at once. With 8 MiB a part and 100 ms a request that is 600 MB/s."""
MAX_MEMORY = 128 << 20
"""Bytes of memory that parts on their way, and those that wait for it, may take."""
MAX_SPOOLED = 3
"""Parts in temporary files at once, each of them over 32 MiB."""


class PartSender:
    """Calls `send` for each part on some thread. One thread hands parts in."""

    def __init__(self, send: Callable[[Part], None]) -> None:
        self._send = send
        self._changed = threading.Condition()
        self._waiting: deque[Part] = deque()
        self._unsent: set[Part] = set()
        self._threads = 0
        self._idle = 0
        self._ended = False
        self._error: BaseException | None = None

    def submit(self, part: Part) -> None:
        """Hand in a complete part; waits until there is room. Raises what sending an earlier one has raised."""
        with self._changed:
            while not self._has_room(part):
                self._raise_error()
                self._changed.wait()
            self._raise_error()
            self._unsent.add(part)
            self._waiting.append(part)
            if self._idle < len(self._waiting) and self._threads < MAX_THREADS:
                self._threads += 1
                threading.Thread(target=self._serve, name="diskfs-upload", daemon=True).start()
            self._changed.notify_all()

    def wait(self) -> None:
        """Wait until everything has been sent. Raises what sending has raised."""
        with self._changed:
            while self._unsent:
                self._raise_error()
                self._changed.wait()
            self._raise_error()

    def stop(self, seconds: float) -> None:
        """Drop what waits, and wait at most so long for what is on its way."""
        with self._changed:
            self._ended = True
            for part in self._waiting:
                self._unsent.discard(part)
            self._waiting.clear()
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._unsent, seconds)

    def _has_room(self, part: Part) -> bool:
        if not self._unsent:
            return True
        memory = sum(other.memory for other in self._unsent) + part.memory
        spooled = sum(other.is_spooled for other in self._unsent) + part.is_spooled
        return len(self._unsent) < MAX_THREADS and memory <= MAX_MEMORY and spooled <= MAX_SPOOLED

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _serve(self) -> None:
        while (part := self._next()) is not None:
            error: BaseException | None = None
            try:
                self._send(part)
            except BaseException as caught:  # noqa: BLE001 - handed to whoever hands in parts
                error = caught
            part.drop()
            with self._changed:
                self._unsent.discard(part)
                self._error = self._error or error
                self._changed.notify_all()

    def _next(self) -> Part | None:
        with self._changed:
            self._idle += 1
            while not self._waiting and not self._ended:
                self._changed.wait()
            self._idle -= 1
            return None if self._ended else self._waiting.popleft()
