"""What a target can do beyond appending, and what all targets on a descriptor share."""

import errno
import os
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from diskfs.errors import OutOfSpace, SinkError
from diskfs_formats.reading import zeroes
from diskfs_formats.source import Buffer
from diskfs_formats.writer import Sink

MAX_BUFFERS = 512
"""Buffers of one gathered write; Linux takes 1024."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@runtime_checkable
class PositionedSink(Sink, Protocol):
    """A target that takes its bytes in any order and from several threads at once; one that is also appended to goes on
    where the last append ended.
    """

    @property
    def keeps_old_bytes(self) -> bool:
        """Whether what is not written shows what was there before (a device), instead of zeroes (a new file)."""
        ...

    def set_size(self, size: int, /) -> None:
        """Say how many bytes the target will have. Raises OutOfSpace if it cannot have as many."""
        ...

    def write_at(self, offset: int, buffers: Sequence[Buffer], /) -> None:
        """Write the buffers, one after the other, from `offset`."""
        ...

    def write_zeroes_at(self, offset: int, length: int, /) -> None:
        """Make a range zero, as cheaply as the target can."""
        ...


@runtime_checkable
class GatheringSink(Sink, Protocol):
    """A target that appends several buffers at once."""

    def write_all(self, buffers: Sequence[Buffer], /) -> None:
        """Append the buffers, one after the other."""
        ...


def write_gathered(descriptor: int, offset: int, buffers: Sequence[Buffer], name: str) -> None:
    """Write buffers at a position of a descriptor, all of their bytes; raises SinkError, OutOfSpace."""
    for start in range(0, len(buffers), MAX_BUFFERS):
        some = buffers[start : start + MAX_BUFFERS]
        wanted = sum(len(buffer) for buffer in some)
        try:
            written = os.pwritev(descriptor, some, offset)
            if written < wanted:
                rest = memoryview(b"".join(some))[written:]
                while rest:
                    count = os.pwrite(descriptor, rest, offset + wanted - len(rest))
                    rest = rest[count:]
        except OSError as error:
            raise sink_error(error, name, f"writing {wanted} bytes at offset {offset:#x}") from error
        offset += wanted


def write_zero_bytes(descriptor: int, offset: int, length: int, name: str) -> None:
    """Write zeroes that take space; raises SinkError."""
    for piece in zeroes(length):
        write_gathered(descriptor, offset, (piece,), name)
        offset += len(piece)


def sink_error(error: OSError, name: str, doing: str) -> SinkError:
    """Return the error for a system call that failed while `doing` something to `name`."""
    if error.errno in _FULL:
        return OutOfSpace(f"{name}: {doing}: {error.strerror}; make room, or choose another target")
    return SinkError(f"{name}: {doing}: {error.strerror or error}")
