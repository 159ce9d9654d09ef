"""Objects in S3 and services that speak its protocol, read by ranges.

Loaded only when an s3:// location is opened. Every request names the version that was opened (If-Match, and versionId
where the user gave one).
"""

from typing import Any

from diskfs.errors import AccessDenied, SourceChanged, SourceError, SourceNotFound
from diskfs.retrying import seconds_asked
from diskfs.s3 import DENIED, EXPIRED, NOT_ACCEPTED, Refused, S3Requests, Way, parse_place
from diskfs.sources.bodies import close_body, read_body, read_body_into
from diskfs.sources.http import error_of
from diskfs.sources.locations import RemoteOptions, shown
from diskfs.sources.remote import IDLE_TIMEOUT, Version
from diskfs_formats.errors import UnsupportedFeature
from diskfs_formats.text import printable


class S3Answer:
    """The answer of a GetObject."""

    def __init__(self, response: dict[str, Any]) -> None:
        metadata = response["ResponseMetadata"]
        self.status: int = metadata["HTTPStatusCode"]
        self.headers: dict[str, str] = {name.lower(): value for name, value in metadata["HTTPHeaders"].items()}
        # botocore's own wrapper reads all that was asked for or nothing; what lies under it gives what has arrived.
        self._body = getattr(response["Body"], "_raw_stream", response["Body"])

    def read(self, length: int, /) -> bytes:
        return read_body(self._body, length)

    def read_into(self, room: memoryview, /) -> int:
        return read_body_into(self._body, room)

    def close(self) -> None:
        close_body(self._body)


class EmptyAnswer:
    """A refused range: the body is of no interest."""

    def __init__(self, headers: dict[str, str]) -> None:
        self.status = 416
        self.headers = headers

    def read(self, _length: int, /) -> bytes:
        return b""

    def read_into(self, _room: memoryview, /) -> int:
        return 0

    def close(self) -> None:
        pass


class S3Transport:
    """Requests for one object."""

    def __init__(self, location: str, options: RemoteOptions) -> None:
        """Find credentials and make the client, or take the one there is; raises AccessDenied or SourceError."""
        self._name = printable(shown(location), 2000)
        self._place = parse_place(location, self._name)
        self._options = options
        self._requests = S3Requests(way_of(options, min(IDLE_TIMEOUT, options.deadline)), self._name)
        self._identity = f"{self._requests.endpoint}/{self._place.bucket}/{self._place.key}"

    @property
    def name(self) -> str:
        return self._name

    @property
    def identity(self) -> str:
        return self._identity

    def get(
        self, first: int | None, last: int | None, version: Version | None, _timeout: float, /
    ) -> "S3Answer | EmptyAnswer":
        request: dict[str, Any] = {"Bucket": self._place.bucket, "Key": self._place.key}
        if first is not None:
            request["Range"] = f"bytes={first}-{last}"
        if self._place.version_id is not None:
            request["VersionId"] = self._place.version_id
        if version is not None and version.strong_etag is not None:
            request["IfMatch"] = version.strong_etag
        if self._options.requester_pays:
            request["RequestPayer"] = "requester"
        try:
            return S3Answer(self._requests.send("get_object", request))
        except Refused as refused:
            if refused.status == 416 or refused.code == "InvalidRange":
                return EmptyAnswer(refused.headers)
            raise self._error(refused, is_open=version is not None) from refused

    def _error(self, refused: Refused, *, is_open: bool) -> Exception:
        name, code = self._name, refused.code
        if refused.status == 412 or code == "PreconditionFailed":
            return SourceChanged(f"{name}: the object was changed since it was opened; open or mount it again")
        if (problem := refused.of_credentials()) is not None:
            goes_on = ", reading then goes on" if code in EXPIRED else ""
            return (AccessDenied if code in EXPIRED | NOT_ACCEPTED else SourceError)(f"{name}: {problem}{goes_on}")
        if code == "NoSuchBucket":
            return SourceNotFound(f"{name}: there is no such bucket")
        if code == "InvalidObjectState":
            return UnsupportedFeature(f"{name}: the object is archived; restore it from its storage class first")
        if code in DENIED:
            return AccessDenied(
                f"{name}: reading it is denied ({code}); it needs s3:GetObject"
                + (
                    ", and of a bucket whose requester pays, --request-payer"
                    if not self._options.requester_pays
                    else ""
                )
            )
        return error_of(refused.status, code, name, seconds_asked(refused.headers.get("retry-after")), is_open=is_open)

    def close(self) -> None:
        pass


def way_of(options: RemoteOptions, read_timeout: float) -> Way:
    """Return how S3 is reached by the options that a user gave."""
    return Way(options.endpoint_url, options.region, options.profile, options.sign, read_timeout)
