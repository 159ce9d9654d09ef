"""An object in S3: written in parts, visible under its name only when it is complete.

What fits into one part goes by one request at the end; what does not, by a multipart upload. docs/decisions/
0016-s3-upload.md says how it is kept from leaving anything behind.
"""

import logging
from collections.abc import Sequence

from diskfs.errors import SinkError, SourceError
from diskfs.s3 import S3Place, Way, parse_place
from diskfs.sinks.s3_parts import Part, PartSizes, too_large
from diskfs.sinks.s3_requests import UploadCounts
from diskfs.sinks.s3_sending import PartSender
from diskfs.sinks.s3_upload import S3Upload
from diskfs_formats.source import Buffer
from diskfs_formats.text import printable

MAX_OPEN = 16
"""Parts that have been begun and are not complete: the beginning of an appliance, and of its members."""
STOP_PATIENCE = 10.0
"""Seconds that a part on its way is waited for when all is given up."""
_LOG = logging.getLogger(__name__)


def target_place(target: str) -> S3Place:
    """Return what an s3:// target names; raises SinkError unless it can be written."""
    name = printable(target, 2000)
    try:
        place = parse_place(target, name)
    except SourceError as error:
        raise SinkError(str(error)) from error
    if place.version_id is not None:
        raise SinkError(f"{name}: a version that exists cannot be written; leave ?versionId= out")
    if place.key.endswith("/"):
        raise SinkError(f"{name}: it names a prefix, expected the key of an object")
    return place


class S3Sink:
    """Writes one object. An ObjectSink: bytes are appended by one thread, and sent by others.

    Parts may also be written out of order, as long as few are incomplete at a time. Memory is bounded by that of
    PartSender and the incomplete parts. An old object stays until `commit` and is replaced then; without `replace` it
    is refused, also one that appears meanwhile. Raises SinkError, OutOfSpace.
    """

    def __init__(
        self,
        target: str,
        way: Way,
        *,
        replace: bool = False,
        deadline: float = 60.0,
        requester_pays: bool = False,
    ) -> None:
        place = target_place(target)
        self._name = printable(target, 2000)
        self._target = target
        self._replace = replace
        self._upload = S3Upload(place, way, self._name, deadline=deadline, requester_pays=requester_pays)
        if not replace:
            self._upload.require_absent()
        self._upload.clean()
        self._sizes = PartSizes()
        self._sender = PartSender(self._upload.send_part)
        self._open: dict[int, Part] = {}
        self._position = 0
        self._is_committed = False
        self._is_ended = False

    @property
    def name(self) -> str:
        """The target, for messages."""
        return self._name

    @property
    def location(self) -> str:
        """The target, to be read."""
        return self._target

    @property
    def counts(self) -> UploadCounts:
        """What it has cost so far."""
        return self._upload.counts

    def expect(self, size: int, /, *, exact: bool) -> None:
        """Say, before anything is written, how large the object will be, or, unless `exact`, at most."""
        self._sizes = PartSizes(size, exact=exact)

    def write(self, data: Buffer, /) -> None:
        self.write_at(self._position, (data,))

    def write_all(self, buffers: Sequence[Buffer], /) -> None:
        self.write_at(self._position, buffers)

    def write_zeroes(self, length: int, /) -> None:
        position, end = self._position, self._position + length
        while position < end:
            part = self._part(position)
            count = min(part.place.offset + part.place.size, end) - position
            part.write_zeroes(count)
            position += count
            self._send_if_full(part)
        self._position = max(self._position, end)

    def write_at(self, offset: int, buffers: Sequence[Buffer], /) -> None:
        """Write the buffers, one after the other, from `offset`. Each byte is written once."""
        for buffer in buffers:
            data = memoryview(buffer)
            while data:
                part = self._part(offset)
                at = offset - part.place.offset
                count = min(part.place.size - at, len(data))
                part.write(at, data[:count])
                data = data[count:]
                offset += count
                self._send_if_full(part)
        self._position = max(self._position, offset)

    def set_size(self, size: int, /) -> None:
        """Say where the object ends: where the last byte was written."""
        assert size == self._position, (size, self._position)

    def flush(self) -> None:
        """Have everything on the server, which does not show it yet; but not what goes by one request."""
        if self._upload.is_begun:
            for part in sorted(self._open.values(), key=lambda part: part.number):
                self._complete(part)
                self._sender.submit(part)
            self._open.clear()
            self._sender.wait()

    def commit(self) -> None:
        self.flush()
        if self._upload.is_begun:
            self._upload.complete(self._position, replace=self._replace)
        else:
            part = self._open.pop(0, None) or Part(self._sizes.at(0), self._name)
            self._complete(part)
            self._upload.put(part, replace=self._replace)
            part.drop()
        self._is_committed = True
        self._sender.stop(0)

    def withdraw(self) -> None:
        """Remove the object that was committed, if it is still the same; an older one is not brought back."""
        if self._is_committed:
            self._upload.withdraw()

    def abort(self) -> None:
        if self._is_committed or self._is_ended:
            return
        self._is_ended = True
        self._upload.stop()
        self._sender.stop(STOP_PATIENCE)
        for part in self._open.values():
            part.drop()
        self._open.clear()
        if not self._upload.abort():
            _LOG.warning(
                "%s: the parts that were sent could not be removed from the server; the next conversion to this "
                "bucket tries it again",
                self._name,
            )

    def _part(self, offset: int) -> Part:
        try:
            place = self._sizes.at(offset)
        except OverflowError as error:
            raise too_large(self._name, offset) from error
        part = self._open.get(place.number)
        if part is None:
            if len(self._open) >= MAX_OPEN:
                raise SinkError(f"{self._name}: over {MAX_OPEN} parts would have to be kept until they are complete")
            part = self._open[place.number] = Part(place, self._name)
        return part

    def _send_if_full(self, part: Part) -> None:
        if part.filled < part.size:
            return
        if not self._upload.is_begun:
            self._upload.begin()
        del self._open[part.place.number]
        self._sender.submit(part)

    def _complete(self, part: Part) -> None:
        part.end_at(min(part.place.size, self._position - part.place.offset))
        assert part.filled == part.size, (part.place, part.filled, self._position)
