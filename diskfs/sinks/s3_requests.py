"""Requests of an upload, tried again where that may help, and what their failures mean to whoever writes."""

import contextlib
import email.utils
import functools
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from diskfs.errors import OutOfSpace, SinkError, SourceError
from diskfs.retrying import Transient, pause
from diskfs.s3 import DENIED, Refused, S3Requests, Way
from diskfs.sinks.s3_parts import Part, PartBody

ANSWER_TIMEOUT = 60.0
"""Seconds in which a server has to answer when it has all of a part, or is to put parts together."""
SEND_TIMEOUT = 60.0
"""Seconds in which the network has to take a small piece; it takes many at once when it has room again."""
CONNECTING_TRIES = 3

_DAMAGED = frozenset(
    {"BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch", "IncompleteBody", "XAmzContentChecksumMismatch"}
)
_FULL = frozenset({"QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "507"})
_TOO_LARGE = frozenset({"EntityTooLarge", "MaxMessageLengthExceeded", "413"})

_ESSENTIAL = {
    "create_multipart_upload": "UploadId",
    "upload_part": "ETag",
    "complete_multipart_upload": "ETag",
    "put_object": "ETag",
    "head_object": "ETag",
    "list_multipart_uploads": "Bucket",
    "list_parts": "UploadId",
}
"""What an answer has to have: one that was cut after its first line looks like a success with nothing in it."""


class Stopped(Exception):
    """The upload was given up while a part was on its way."""


@dataclass(slots=True)
class UploadCounts:
    """What an upload has cost: requests, of them tries after the first, and bytes of bodies. Threads share it."""

    requests: int = 0
    bytes_sent: int = 0
    retries: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, *, requests: int = 0, bytes_sent: int = 0, retries: int = 0) -> None:
        """Count what has happened."""
        with self._lock:
            self.requests += requests
            self.bytes_sent += bytes_sent
            self.retries += retries


class PersistentRequests:
    """Sends requests until they are answered, or have failed for `deadline` seconds. Shared by threads."""

    def __init__(self, way: Way, name: str, deadline: float) -> None:
        """Make a client; raises SinkError."""
        self.name = name
        self.counts = UploadCounts()
        self.stopping = threading.Event()
        """Set when no part is to be sent any more."""
        self.deadline = deadline
        self._is_reached = False
        self._way = way
        self._quick = self._client(way._replace(read_timeout=min(way.read_timeout, deadline)))

    @functools.cached_property
    def _patient(self) -> S3Requests:
        """For bodies, and for answers that take long."""
        longest = max(ANSWER_TIMEOUT, self._way.read_timeout)
        return self._client(self._way._replace(read_timeout=longest, send_timeout=SEND_TIMEOUT))

    def _client(self, way: Way) -> S3Requests:
        try:
            return S3Requests(way, self.name)
        except SourceError as error:
            raise SinkError(str(error)) from error

    @property
    def endpoint(self) -> str:
        """The URL of the service."""
        return self._quick.endpoint

    def require(self, operation: str, request: dict[str, Any], doing: str, part: Part | None = None) -> dict[str, Any]:
        """Send a request; what the server refuses is a SinkError."""
        try:
            return self.call(operation, request, doing, part)
        except Refused as refused:
            raise self.error(refused, doing) from refused

    def call(self, operation: str, request: dict[str, Any], doing: str, part: Part | None = None) -> dict[str, Any]:
        """Send a request, with `part` as its body; raises Refused, SinkError, and Stopped if there is a body."""
        is_long = part is not None or operation == "complete_multipart_upload"
        requests = self._patient if is_long else self._quick
        failing_since: float | None = None
        tries = 0
        while True:
            try:
                answer = self._try(requests, operation, request, part)
            except Transient as error:
                tries += 1
                now = time.monotonic()
                failing_since = now if failing_since is None else failing_since
                seconds = pause(tries, error.after)
                if error.connecting and not self._is_reached and tries >= CONNECTING_TRIES:
                    raise SinkError(f"{self.name}: {error}") from error
                if now + seconds - failing_since > self.deadline:
                    raise SinkError(
                        f"{self.name}: {doing}: {error}; given up after {self.deadline:.0f} s of failures"
                    ) from error
                self.counts.add(retries=1)
                if part is None:
                    time.sleep(seconds)
                elif self.stopping.wait(seconds):
                    raise Stopped from error
            else:
                self._is_reached = True
                return answer

    def _try(self, requests: S3Requests, operation: str, request: dict[str, Any], part: Part | None) -> dict[str, Any]:
        body = None if part is None else PartBody(part, self.stopping)
        if body is not None and self.stopping.is_set():
            raise Stopped
        self.counts.add(requests=1)
        try:
            answer = requests.send(operation, request if body is None else {**request, "Body": body})
            if (essential := _ESSENTIAL.get(operation)) is not None and essential not in answer:
                raise Transient("the answer is not complete")
        except Refused as refused:
            if refused.code in _DAMAGED or (refused.status >= 500 and refused.status not in {501, 507}):
                raise Transient(f"the server answered {refused}") from refused
            raise
        except SourceError as error:
            raise SinkError(str(error)) from error
        finally:
            if body is not None:
                self.counts.add(bytes_sent=body.tell())
        return answer

    def exists_error(self) -> SinkError:
        """Return the error for an object that may not be replaced."""
        return SinkError(f"{self.name}: it exists already; use --force to replace it")

    def error(self, refused: Refused, doing: str) -> SinkError:
        """Return what an answer means that is no."""
        name, code = self.name, refused.code
        if (problem := refused.of_credentials()) is not None:
            return SinkError(f"{name}: {problem}")
        if refused.status == 412 or code == "PreconditionFailed":
            return self.exists_error()
        if code in DENIED:
            return SinkError(
                f"{name}: {doing}: it is denied ({code}); s3:PutObject is needed, and s3:AbortMultipartUpload"
            )
        if code in _FULL or refused.status == 507:
            return OutOfSpace(
                f"{name}: {doing}: the server has no room ({refused}); make room, or choose another target"
            )
        if code in _TOO_LARGE or refused.status == 413:
            return SinkError(f"{name}: {doing}: the object is larger than the server takes ({refused})")
        meanings = {
            "ConditionalRequestConflict": f"{doing}: somebody else wrote the same object meanwhile; try again",
            "NoSuchBucket": "there is no such bucket",
            "NoSuchUpload": f"{doing}: the server has the upload no more: another program, or a lifecycle rule of the "
            "bucket, has ended it",
        }
        return SinkError(f"{name}: {meanings.get(code, f'{doing}: the server answered {refused}')}")


def server_time(answer: dict[str, Any]) -> float:
    """Return when an answer was sent by the server's own clock, in seconds since 1970; ours if it does not say."""
    date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    if date:
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            return email.utils.parsedate_to_datetime(date).timestamp()
    return time.time()
