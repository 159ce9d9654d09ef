"""An object behind a network: ranged requests, each checked against the version that was opened.

Transports (`http`, `s3`) send one request and say what came back. Here is everything that must hold whatever the
transport: the answer is the range that was asked for, of the version that was opened, complete; else it is asked for
again, from the first byte that is missing, until the deadline.
"""

import hashlib
import re
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

from diskfs.errors import SourceChanged, SourceError
from diskfs.retrying import FIRST_PAUSE, LONGEST_ASKED_PAUSE, STOPPING, Deadline, Transient, pause
from diskfs.sources.statistics import STATISTICS
from diskfs_formats.errors import UnsupportedFeature

PIECE = 256 << 10
"""Bytes that are handed on at a time."""
SEGMENT = 4 * PIECE
"""Bytes of one buffer at most: the largest request of the kernel, so that it is answered without a copy."""
SPARE_BUFFERS = 80
"""Buffers that are remembered to be used again: those of what streams by, and some under way."""
IDLE_TIMEOUT = 15.0
"""Seconds without a byte after which a try is given up."""
LEAST_TIMEOUT = 0.1
"""Seconds that a try gets although the time is up: waiting before it took longer than was asked for."""
SLOW_AFTER = 8.0
"""Seconds after which a try that is slower than SLOWEST_TRY is given up for a new one: it may meet another server."""
SLOWEST_TRY = 32 << 10
CONNECTING_TRIES = 3
"""Tries of reaching a server that has never answered: a wrong name or port should not take a minute to be told."""

_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})")
_EMPTY_RANGE = re.compile(r"bytes \*/0")


@dataclass(frozen=True, slots=True)
class Version:
    """What tells one version of an object from another. `etag` is as sent, quotes included; a weak one only compares.

    `modified` is Last-Modified as it was sent.
    """

    etag: str | None
    modified: str | None
    size: int

    @property
    def strong_etag(self) -> str | None:
        """The entity tag, if it may be demanded with If-Match."""
        return self.etag if self.etag and not self.etag.startswith("W/") else None


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of an object: those from `start` to `end` of a buffer that is not written to any more.

    The pieces of one buffer follow each other in the object as in the buffer. A piece keeps all of its buffer alive.
    """

    buffer: memoryview
    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start

    @property
    def view(self) -> memoryview:
        """The bytes, not copied."""
        return self.buffer[self.start : self.end]

    @classmethod
    def of(cls, data: bytes) -> "Piece":
        """Return a piece that shares its buffer with none."""
        return cls(memoryview(data), 0, len(data))


class SpareBuffers:
    """Buffers of SEGMENT bytes that are used again once nobody looks at them: a new one costs as much as a copy, as the
    kernel and then Python fill it with zeroes. Shared by threads.
    """

    def __init__(self, count: int = SPARE_BUFFERS) -> None:
        self._made: deque[bytearray] = deque(maxlen=count)
        self._lock = threading.Lock()

    def take(self) -> memoryview:
        """Return a buffer with anything in it, which is this caller's alone."""
        with self._lock:
            for _ in range(min(2, len(self._made))):
                oldest = self._made.popleft()
                self._made.append(oldest)
                try:
                    # Python refuses to resize what is still looked at.
                    oldest.pop()
                except BufferError:
                    continue
                oldest.append(0)
                return memoryview(oldest)
            buffer = bytearray(SEGMENT)
            self._made.append(buffer)
            return memoryview(buffer)

    def clear(self) -> None:
        """Give the memory back, as far as nobody looks at it."""
        with self._lock:
            self._made.clear()


SPARE = SpareBuffers()
"""Those of this process."""


class _Buffers:
    """Where the bytes of a range go; each buffer is made when its first byte comes. `offset` is a multiple of PIECE."""

    def __init__(self, offset: int, length: int) -> None:
        self._skipped = offset % SEGMENT
        self._length = length
        self._made: list[memoryview] = []

    def room(self, at: int) -> memoryview:
        """Return what is to hold the bytes from `at` on, counted from the beginning of the range."""
        number, within = divmod(self._skipped + at, SEGMENT)
        if number == len(self._made):
            begin = max(number * SEGMENT, self._skipped)
            end = min((number + 1) * SEGMENT, self._skipped + self._length)
            self._made.append(SPARE.take() if end - begin == SEGMENT else memoryview(bytearray(end - begin)))
        return self._made[number][within if number else within - self._skipped :]

    def pieces(self) -> list[Piece]:
        """Return all that was read, which must be all that was asked for."""
        return [
            Piece(buffer, start, min(start + PIECE, len(buffer)))
            for buffer in (made.toreadonly() for made in self._made)
            for start in range(0, len(buffer), PIECE)
        ]


class Answer(Protocol):
    """One answer of a server, of status 200, 206 or 416; anything else is raised by the transport.

    `headers` has lower-case names.
    """

    status: int
    headers: dict[str, str]

    def read_into(self, room: memoryview, /) -> int:
        """Put what has arrived of the body, at least one byte but at its end, into `room`; return how many bytes.

        Raises Transient. What of `room` lies behind them may be overwritten too.
        """
        ...

    def read(self, length: int, /) -> bytes:
        """Return up to `length` bytes of the body, none at its end; raises Transient."""
        ...

    def close(self) -> None:
        """Give the connection back if the body was read to its end, else close it."""
        ...


class Transport(Protocol):
    """Sends requests for one object. Shared by threads."""

    @property
    def name(self) -> str:
        """The location, without secrets."""
        ...

    @property
    def identity(self) -> str:
        """What tells the object from any other, without secrets: endpoint, bucket and key, or URL without query."""
        ...

    def get(self, first: int | None, last: int | None, version: Version | None, timeout: float, /) -> Answer:
        """Ask for the bytes from `first` to `last`, or for all; of `version` alone, where the server can see to that.

        Raises Transient for what may go better next time, SourceChanged if the version is gone, else SourceError.
        """
        ...

    def close(self) -> None:
        """Close idle connections."""
        ...


class RemoteObject:
    """A pinned object. `fetch` costs one request if nothing goes wrong; there is no cache in it. Shared by threads."""

    def __init__(self, transport: Transport, version: Version, deadline: float) -> None:
        self._transport = transport
        self._version = version
        self._deadline = deadline

    @property
    def name(self) -> str:
        return self._transport.name

    @property
    def size(self) -> int:
        return self._version.size

    @property
    def version(self) -> Version:
        """The version that was opened."""
        return self._version

    @property
    def key(self) -> str:
        """A digest of the object and its version, for names of cache files: equal only for equal bytes."""
        version = self._version
        text = "\0".join((self._transport.identity, version.etag or "", version.modified or "", str(version.size)))
        return hashlib.sha256(text.encode()).hexdigest()

    def deadline(self) -> Deadline:
        """Return the patience for a fetch, which begins now."""
        return Deadline(self._deadline)

    def fetch(self, offset: int, length: int, deadline: Deadline | None = None) -> list[Piece]:
        """Return the bytes of a range, in pieces of PIECE bytes; only the last may be shorter.

        `offset` is a multiple of PIECE. Pieces of one aligned SEGMENT share a buffer.

        Raises SourceChanged if the object is not the version that was opened, SourceError if the deadline passes.
        """
        deadline = deadline or self.deadline()
        if not deadline.left:
            raise SourceError(f"{self.name}: no request could be sent for {deadline.seconds:.0f} s: too many hang")
        buffers = _Buffers(offset, length)
        received = tries = 0
        while received < length:
            begun = received
            try:
                for count in self._try(buffers, offset, length, received, deadline):
                    received += count
                    deadline.received(count)
            except Transient as error:
                # A try that brought something has found a working server: begin with short pauses again.
                tries = 0 if received - begun >= PIECE else tries + 1
                wait_to_retry(error, tries, deadline, f"{self.name}: {length} bytes at offset {offset:#x}")
        return buffers.pieces()

    def _try(self, buffers: _Buffers, offset: int, length: int, received: int, deadline: Deadline) -> Iterator[int]:
        """Put what one request for the rest of a range brings into buffers, and yield how much; raises Transient."""
        STATISTICS.add(requests=1)
        begun, at = time.monotonic(), received
        first, last = offset + received, offset + length - 1
        answer = self._transport.get(first, last, self._version, _patience(deadline))
        with closing(answer):
            self._require_right_answer(answer, first, length - received)
            while at < length:
                count = answer.read_into(buffers.room(at))
                if not count:
                    raise Transient(f"the body ended {length - at} bytes early")
                at += count
                STATISTICS.add(bytes_fetched=count)
                yield count
                elapsed = time.monotonic() - begun
                if at < length and elapsed > SLOW_AFTER and at - received < elapsed * SLOWEST_TRY:
                    raise Transient(f"only {at - received} bytes came in {elapsed:.0f} s")
            if answer.read(1):
                raise Transient("the body is longer than the range that was asked for")

    def _require_right_answer(self, answer: Answer, offset: int, length: int) -> None:
        headers = answer.headers
        version = self._version
        if answer.status == 416:
            raise SourceChanged(self._changed("it is shorter now"))
        etag, modified = headers.get("etag"), headers.get("last-modified")
        for found_word, word in ((etag, version.etag), (modified, version.modified)):
            # Python takes a header that ends with the connection for a whole one.
            if found_word and word and found_word != word and word.startswith(found_word):
                raise Transient("the answer ended in the middle of its header")
        if version.etag is not None and etag is not None and etag != version.etag:
            raise SourceChanged(self._changed(f"its ETag was {version.etag} and is {etag}"))
        # Of an answer without an ETag, too, the time is all that is left.
        lacks_etag = etag is None and modified is not None
        if (version.strong_etag is None or lacks_etag) and version.modified != modified:
            raise SourceChanged(self._changed(f"it was modified {version.modified} then, {modified} now"))
        if (encoding := headers.get("content-encoding", "identity")) != "identity":
            raise Transient(f"the server sent the content encoded as {encoding[:40]!r}")
        if answer.status == 200:
            if offset == 0 and length == version.size and headers.get("content-length") == str(length):
                return
            raise Transient("the server answered with the whole file instead of the range that was asked for")
        found = parse_content_range(headers)
        if found is None:
            raise Transient("the answer has no usable Content-Range")
        first, last, total = found
        if total != version.size:
            raise SourceChanged(self._changed(f"it had {version.size} bytes and has {total}"))
        if (first, last) != (offset, offset + length - 1):
            raise Transient(f"the server sent bytes {first}-{last} for {offset}-{offset + length - 1}")
        if (sent := headers.get("content-length")) is not None and sent != str(length):
            raise Transient(f"the answer holds {sent[:20]} bytes, expected {length}")

    def _changed(self, how: str) -> str:
        return f"{self.name}: the object was changed since it was opened ({how}); open or mount it again"

    def close(self) -> None:
        self._transport.close()


def parse_content_range(headers: dict[str, str]) -> tuple[int, int, int] | None:
    """Return first byte, last byte and total size of an answer, or None."""
    match = _CONTENT_RANGE.fullmatch(headers.get("content-range", "").strip())
    if match is None:
        return None
    first, last, total = (int(number) for number in match.groups())
    return (first, last, total) if first <= last < total else None


def _patience(deadline: Deadline) -> float:
    """Return the seconds without a byte that the next try gets; never none, which is no timeout to any library."""
    return min(IDLE_TIMEOUT, max(deadline.left, LEAST_TIMEOUT))


def wait_to_retry(error: Transient, tries: int, deadline: Deadline, what: str) -> None:
    """Sleep before the next try; raises SourceError if there is no time for one, or the process is going away."""
    left = deadline.left
    # A long pause by chance must not give up the time that is left; one that the server asks for may.
    seconds = max(min(pause(tries, error.after), left / 2), min(error.after, LONGEST_ASKED_PAUSE), FIRST_PAUSE / 4)
    if seconds >= left:
        raise SourceError(f"{what}: {error}; given up after {deadline.seconds:.0f} s without progress") from error
    STATISTICS.add(retries=1)
    if STOPPING.wait(seconds):
        raise SourceError(f"{what}: given up because of unmounting") from error


@dataclass(frozen=True, slots=True)
class Probed:
    """What the first request found. `version` is None for a server that does not answer with ranges."""

    version: Version | None


def probe(transport: Transport, deadline_seconds: float) -> Probed:
    """Find out size and version with a request for one byte; HEAD is not allowed by URLs that are signed for GET.

    Raises SourceNotFound, AccessDenied, or SourceError.
    """
    deadline = Deadline(deadline_seconds)
    tries = 0
    while True:
        try:
            return _probe(transport, deadline)
        except Transient as error:
            tries += 1
            if error.connecting and tries >= CONNECTING_TRIES:
                raise SourceError(f"{transport.name}: {error}") from error
            wait_to_retry(error, tries, deadline, f"{transport.name}: opening it")


def _probe(transport: Transport, deadline: Deadline) -> Probed:
    STATISTICS.add(requests=1)
    answer = transport.get(0, 0, None, _patience(deadline))
    with closing(answer):
        headers = answer.headers
        if answer.status == 416:
            return _probe_empty(transport, answer, deadline)
        if (encoding := headers.get("content-encoding", "identity")) != "identity":
            raise UnsupportedFeature(
                f"{transport.name}: the server sends the content encoded as {encoding[:40]!r}, so that offsets in it "
                "mean nothing; store it without Content-Encoding"
            )
        if answer.status == 200:
            if headers.get("content-length") == "0":
                return Probed(_version(transport, headers, 0))
            return Probed(None)
        found = parse_content_range(headers)
        if found is None or found[:2] != (0, 0):
            raise Transient("the answer to a request for one byte has no usable Content-Range")
        data = answer.read(2)
        if len(data) != 1 or answer.read(1):
            raise Transient(f"{len(data)} bytes came for one that was asked for")
        STATISTICS.add(bytes_fetched=1)
        return Probed(_version(transport, headers, found[2]))


def _probe_empty(transport: Transport, answer: Answer, deadline: Deadline) -> Probed:
    # An empty object has no first byte. Servers say so with `bytes */0`, or not at all: then all of it is asked for.
    if _EMPTY_RANGE.fullmatch(answer.headers.get("content-range", "").strip()):
        return Probed(Version(answer.headers.get("etag"), answer.headers.get("last-modified"), 0))
    STATISTICS.add(requests=1)
    with closing(transport.get(None, None, None, _patience(deadline))) as whole:
        if whole.status == 200 and whole.headers.get("content-length") == "0":
            return Probed(Version(whole.headers.get("etag"), whole.headers.get("last-modified"), 0))
    raise Transient("the server refused the first byte of an object that is not empty")


def _version(transport: Transport, headers: dict[str, str], size: int) -> Version:
    version = Version(headers.get("etag"), headers.get("last-modified"), size)
    if version.etag is None and version.modified is None:
        raise UnsupportedFeature(
            f"{transport.name}: the server sends neither ETag nor Last-Modified, so that a change during reading could "
            "not be noticed; use --spool to copy it first"
        )
    return version
