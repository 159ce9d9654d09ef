"""What a target can do beyond appending, and what all targets on a descriptor share."""

import errno
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from diskfs.errors import OutOfSpace, SinkError
from diskfs.sinks import system_calls
from diskfs_formats.reading import zeroes
from diskfs_formats.source import Buffer
from diskfs_formats.writer import Sink

MAX_BUFFERS = 512
"""Buffers of one gathered write; Linux takes 1024."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class Counts(Protocol):
    """What writing to a store has cost: requests, of them tries after the first, and bytes sent."""

    @property
    def requests(self) -> int: ...
    @property
    def retries(self) -> int: ...
    @property
    def bytes_sent(self) -> int: ...


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


@runtime_checkable
class ObjectSink(GatheringSink, Protocol):
    """A target that is an object of a store, which shows it only after `commit`, and cannot read it back before.

    Bytes may be written out of order, as long as few parts of the object are incomplete at a time.
    """

    @property
    def location(self) -> str:
        """The target, to be read."""
        ...

    @property
    def counts(self) -> Counts:
        """What writing has cost so far."""
        ...

    def expect(self, size: int, /, *, exact: bool) -> None:
        """Say, before anything is written, how large the object will be, or, unless `exact`, at most."""
        ...

    def set_size(self, size: int, /) -> None:
        """Say how large the object is, when everything was written."""
        ...

    def write_at(self, offset: int, buffers: Sequence[Buffer], /) -> None:
        """Write the buffers, one after the other, from `offset`; each byte once."""
        ...

    def flush(self) -> None:
        """Have everything in the store."""
        ...

    def withdraw(self) -> None:
        """Remove the object that was committed, if it is still the same; an older one is not brought back."""
        ...


def write_gathered(descriptor: int, offset: int, buffers: Sequence[Buffer], name: str) -> None:
    """Write buffers at a position of a descriptor, all of their bytes; raises SinkError, OutOfSpace."""
    for start in range(0, len(buffers), MAX_BUFFERS):
        some = buffers[start : start + MAX_BUFFERS]
        wanted = sum(len(buffer) for buffer in some)
        try:
            written = system_calls.write(descriptor, some, offset)
            if written < wanted:
                rest = memoryview(b"".join(some))[written:]
                while rest:
                    count = system_calls.write(descriptor, (rest,), offset + wanted - len(rest))
                    if not count:
                        raise OSError(errno.EIO, "nothing was written")
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
