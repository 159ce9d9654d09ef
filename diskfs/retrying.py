"""When a failed request is tried again, and when it is given up."""

import email.utils
import random
import threading
import time

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0
"""Seconds between two tries at most, so that reading goes on soon after an outage has ended."""
LONGEST_ASKED_PAUSE = 20.0
"""Seconds of a server's Retry-After that are kept to."""
SLOWEST = 4 << 10
"""Bytes a second: what arrives pays for as much more time, so that a slow line is no outage and a trickle is one:
a hundred kilobytes a second may be shared by a dozen requests."""


class Transient(Exception):
    """One try failed in a way that the next may not. Its text has no secrets and becomes part of the final message.

    `after` is how many seconds the server asks to wait, `connecting` whether there was no connection at all.
    """

    def __init__(self, reason: str, *, after: float = 0.0, connecting: bool = False) -> None:
        super().__init__(reason)
        self.after = after
        self.connecting = connecting


class Deadline:
    """The patience for one fetch: `seconds` without bytes, more as bytes arrive."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def received(self, length: int) -> None:
        """Extend the deadline for bytes that have arrived."""
        self._end += length / SLOWEST

    @property
    def left(self) -> float:
        """Seconds that are left; 0 if there are none."""
        return max(0.0, self._end - time.monotonic())


def pause(tries: int, asked: float) -> float:
    """Return how long to wait before the next try: random, so that clients do not come back all at once."""
    longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(tries, 10))
    return max(random.uniform(longest / 4, longest), min(asked, LONGEST_ASKED_PAUSE))  # noqa: S311 - no secret


def seconds_asked(text: str | None) -> float:
    """Return the seconds of a Retry-After header, 0 if it has none that can be read."""
    if not text:
        return 0.0
    if text.isascii() and text.strip().isdigit():
        return float(text.strip()[:6])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return 0.0


STOPPING = threading.Event()
"""Set when the process goes away: whoever waits for the network then gives up at once."""
