"""What the files of one changeable disk have in common: the disk itself, its failures, its flushes, its pages."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from diskfs.disks.writable import WritableDisk
from diskfs.errors import MountError
from diskfs.fuse.kept_pages import KeptPages

if TYPE_CHECKING:
    from diskfs_formats.source import ByteSource


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

    def __post_init__(self) -> None:
        self.flushes = FlushRounds(self.disk.flush)

    def window(self, content: "ByteSource", offset: int) -> Window:
        """Add a file that shows the disk from `offset` on."""
        window = Window(self, content, offset)
        self.windows.append(window)
        return window


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
