"""What the files of one changeable disk have in common: the disk itself, its failures, its flushes, its pages."""

import resource
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from diskfs.disks.writable import WritableDisk
from diskfs.errors import MountError
from diskfs.fuse.kept_pages import KeptPages

if TYPE_CHECKING:
    from diskfs_formats.source import Buffer, ByteSource

LONGEST_WAIT = 0.005
"""Seconds of one write on the event loop after which the next ones go to a thread."""
SLOW_SECONDS = 1.0
"""How long they do."""


@dataclass(frozen=True, slots=True)
class Window:
    """Where a file lies on a disk that can be changed: `content` begins at `offset` of it."""

    written: "WrittenDisk"
    content: "ByteSource"
    offset: int


@dataclass(slots=True, eq=False)
class WrittenDisk:
    """A disk that can be changed, through its own file and those of its partitions. For the event loop only."""

    disk: WritableDisk
    windows: list[Window] = field(default_factory=list)
    modified_ns: int | None = None
    """When it was last written to; None as long as it was not."""
    failures: int = 0
    """How often storing what was written has failed. A file that was open then fails until it is opened again."""
    flushes: "FlushRounds" = field(init=False)
    pages: KeptPages = field(default_factory=KeptPages)

    _quick: "Callable[[int, Buffer], bool] | None" = field(init=False)
    _slow_until: float = 0.0

    def __post_init__(self) -> None:
        self._quick = getattr(self.disk, "write_if_quick", None)
        self.flushes = FlushRounds(self.disk.flush)

    def write_if_quick(self, offset: int, data: "Buffer") -> bool:
        """Write at once, on the event loop, if the disk can without waiting; raises what the disk raises.

        Waking a thread costs more than copying a few pages. Where the kernel makes the writer wait all the same,
        because too much is not on the disk yet, threads take over for a while: the event loop has others to serve.
        """
        if self._quick is None or self.pages.are_any:
            return False
        began = time.monotonic()
        if began < self._slow_until:
            return False
        waits = _waits()
        try:
            return self._quick(offset, data)
        finally:
            ended = time.monotonic()
            # Not if the processor was taken away, which a thread would have met as well.
            if ended - began > LONGEST_WAIT and _waits() > waits:
                self._slow_until = ended + SLOW_SECONDS

    def window(self, content: "ByteSource", offset: int) -> Window:
        """Add a file that shows the disk from `offset` on."""
        window = Window(self, content, offset)
        self.windows.append(window)
        return window


def _waits() -> int:
    """Return how often this thread has waited for something."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


class FlushRounds:
    """Lets those who ask for a flush while one is under way share the next one, which covers what they all wrote."""

    def __init__(self, flush: Callable[[], None]) -> None:
        self._flush = flush
        self._running = trio.Lock()
        self._next: _Round | None = None

    async def flush(self, run: Callable[[Callable[[], None]], Awaitable[None]]) -> None:
        """Return when a flush that began after this call has ended; raises what it raises."""
        round_ = self._next
        if round_ is not None:
            await round_.done.wait()
        else:
            round_ = self._next = _Round()
            try:
                async with self._running:
                    self._next = None
                    await run(self._flush)
                round_.error = None
            except Exception as error:  # noqa: BLE001 - kept for all that take part, this one too
                round_.error = error
            finally:
                if self._next is round_:
                    self._next = None
                round_.done.set()
        if round_.error is not None:
            raise round_.error


class _Round:
    def __init__(self) -> None:
        self.done = trio.Event()
        self.error: Exception | None = MountError("the mount ended before the flush did")
