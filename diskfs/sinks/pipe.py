"""Targets that only take bytes in order: standard output, a FIFO, a character device."""

import contextlib
import fcntl
import os
import select
from collections import deque
from collections.abc import Sequence
from itertools import islice

from diskfs.errors import ReaderGone, SinkError
from diskfs.sinks.positioned import MAX_BUFFERS, sink_error
from diskfs_formats.reading import zeroes
from diskfs_formats.source import Buffer

PIPE_SIZE = 1 << 20
"""Bytes that the kernel is asked to let a pipe hold; an unprivileged process may have this much."""


class PipeSink:
    """Appends to a descriptor. What was written is gone: there is nothing to undo, and zeroes are written as such.

    Raises ReaderGone if nobody reads any more, else SinkError.
    """

    def __init__(self, descriptor: int, name: str) -> None:
        """Take over an open descriptor."""
        self._fd = descriptor
        self._name = name
        self._position = 0
        with contextlib.suppress(OSError):
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE_SIZE)

    @property
    def name(self) -> str:
        """The target, for messages."""
        return self._name

    def write(self, data: Buffer, /) -> None:
        self.write_all((data,))

    def write_all(self, buffers: Sequence[Buffer], /) -> None:
        left = deque(memoryview(buffer) for buffer in buffers)
        try:
            while left:
                try:
                    count = os.writev(self._fd, list(islice(left, MAX_BUFFERS)))
                except BlockingIOError:
                    self._wait()
                    continue
                self._position += count
                while left and count >= len(left[0]):
                    count -= len(left.popleft())
                if count:
                    left[0] = left[0][count:]
        except BrokenPipeError as error:
            raise ReaderGone(
                f"{self._name}: whoever read it has closed it after {self._position} bytes: what was written is not "
                "the whole image"
            ) from error
        except OSError as error:
            raise self._failed(error) from error

    def write_zeroes(self, length: int, /) -> None:
        for piece in zeroes(length):
            self.write(piece)

    def commit(self) -> None:
        # A pipe cannot be synced and a file that standard output leads to is its owner's business.
        self._close()

    def abort(self) -> None:
        self._close()

    def _wait(self) -> None:
        """Return when the pipe takes more: somebody who shares it has made it one that does not block."""
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        poll.poll()

    def _close(self) -> None:
        descriptor, self._fd = self._fd, -1
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def _failed(self, error: OSError) -> SinkError:
        return sink_error(error, self._name, f"writing at offset {self._position:#x}")
