"""Waiting for the kernel's next request, without the event loop while requests keep coming.

pyfuse3 lets its worker tasks take turns: for every request a lock is handed over, the descriptor is registered with
epoll, and the scheduler runs twice. That costs more than answering a read whose bytes are ready. The gate replaces
that turn-taking, and nothing else: a worker that finds another request waiting takes it at once, and the other
workers sleep until one has to wait for a thread. See docs/decisions/0004-session-gate.md.
"""

import contextlib
import select
import time
from collections.abc import Callable
from pathlib import Path

import pyfuse3
import trio

WORKERS = 256
"""Requests in flight: more than may hang at a remote source (mount.MAX_WAITING), so that those that are ready overtake
those that wait."""
LONGEST_TURN = 0.005
"""Seconds after which a worker lets timers, signals and finished threads have their turn."""
REPLACED = "_wait_fuse_readable"
"""The function of pyfuse3 that each worker awaits before it receives a request; true means there is one."""


class SessionGate:
    """Decides which worker receives the next request. For one mount, on the event loop only."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        self._poll = poller.poll
        self._clock = time.monotonic
        self._watched = False
        self._closed = False
        self._sleeping: list[trio.lowlevel.Task] = []
        self._woken = False
        self._turn_ends = 0.0

    async def wait(self) -> bool:
        """Return True when a request is there for the calling worker, False when the session is over."""
        if self._clock() > self._turn_ends:
            await trio.lowlevel.checkpoint()
            self._turn_ends = self._clock() + LONGEST_TURN
        while self._watched and not self._closed:
            await self._sleep()
        if self._closed:
            self._wake_another()
            return False
        if not self._poll(0):
            self._watched = True
            try:
                await trio.lowlevel.wait_readable(self._descriptor)
            except trio.ClosedResourceError:
                self._closed = True
            finally:
                self._watched = False
            self._turn_ends = self._clock() + LONGEST_TURN
        # The next worker runs as soon as this one has to wait, and finds its turn free.
        self._wake_another()
        return not self._closed

    def close(self) -> None:
        """End the session for every worker, wherever it is.

        pyfuse3.terminate() only wakes whoever waits at the descriptor at that moment. A worker that is between two
        requests would wait there afterwards for ever, and what libfuse has taken by then is never answered.
        """
        self._closed = True
        while self._sleeping:
            trio.lowlevel.reschedule(self._sleeping.pop())

    async def _sleep(self) -> None:
        task = trio.lowlevel.current_task()
        self._sleeping.append(task)

        def cancelled(_raise_cancel: Callable[[], None]) -> trio.lowlevel.Abort:
            self._sleeping.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(cancelled)
        self._woken = False

    def _wake_another(self) -> None:
        if self._sleeping and not self._woken:
            self._woken = True
            trio.lowlevel.reschedule(self._sleeping.pop())


def fuse_descriptors() -> set[int]:
    """Return this process's open descriptors of /dev/fuse."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if str(entry.readlink()) == "/dev/fuse":
                found.add(int(entry.name))
    return found


class Session:
    """Serves the requests of one mount, from any number of workers, until it ends. For the event loop only.

    `descriptors` are those of the mount: one, unless /proc is not there.
    """

    def __init__(self, descriptors: set[int]) -> None:
        usable = hasattr(pyfuse3, REPLACED) and len(descriptors) == 1
        self._gate = SessionGate(next(iter(descriptors))) if usable else None

    async def serve(self) -> None:
        """Serve requests until the session ends."""
        if self._gate is None:
            await pyfuse3.main()
            return
        original = getattr(pyfuse3, REPLACED)
        setattr(pyfuse3, REPLACED, self._gate.wait)
        try:
            await pyfuse3.main(min_tasks=1, max_tasks=WORKERS)
        finally:
            setattr(pyfuse3, REPLACED, original)

    def end(self) -> None:
        """Let every worker finish the request that it has, and end; `serve` returns then."""
        pyfuse3.terminate()
        if self._gate is not None:
            self._gate.close()
