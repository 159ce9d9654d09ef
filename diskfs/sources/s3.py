"""Objects in S3 and services that speak its protocol, by boto3: its credentials, profiles, regions and endpoints.

Loaded only when an s3:// location is opened. Every request names the version that was opened (If-Match, and versionId
where the user gave one).
"""

import functools
import re
import threading
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    NoCredentialsError,
    PartialCredentialsError,
    ReadTimeoutError,
)

from diskfs.clients import s3_client
from diskfs.errors import AccessDenied, SourceChanged, SourceError, SourceNotFound
from diskfs.sources.http import close_body, error_of, read_body, seconds_asked
from diskfs.sources.locations import RemoteOptions, shown
from diskfs.sources.remote import IDLE_TIMEOUT, Version
from diskfs.sources.retrying import Transient
from diskfs_formats.errors import UnsupportedFeature
from diskfs_formats.text import printable

RENEWALS = 2
"""How often credentials that are refused are looked for anew in one request: they may just be changing."""
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_LATER = frozenset(
    {
        "RequestTimeout", "RequestTimeoutException", "SlowDown", "Throttling", "ThrottlingException", "InternalError",
        "ServiceUnavailable", "RequestThrottled", "RequestLimitExceeded", "PriorRequestNotComplete",
        "BandwidthLimitExceeded", "TooManyRequests", "503", "500", "502", "504", "429",
    }
)  # fmt: skip
_EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"})
_MAYBE_ROTATED = frozenset({"InvalidAccessKeyId", "InvalidToken", "SignatureDoesNotMatch", "403"})
"""What a server says of credentials that were replaced meanwhile, as well as of wrong ones."""


class S3Place(NamedTuple):
    """What an s3:// location names."""

    bucket: str
    key: str
    version_id: str | None


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

    def close(self) -> None:
        close_body(self._body)


class EmptyAnswer:
    """A refused range: the body is of no interest."""

    def __init__(self, headers: dict[str, str]) -> None:
        self.status = 416
        self.headers = headers

    def read(self, _length: int, /) -> bytes:
        return b""

    def close(self) -> None:
        pass


class S3Transport:
    """Requests for one object."""

    def __init__(self, location: str, options: RemoteOptions) -> None:
        """Find credentials and make the client, or take the one there is; raises AccessDenied or SourceError."""
        self._name = printable(shown(location), 2000)
        self._place = parse_place(location, self._name)
        self._options = options
        self._client = _Clients.get(options, self._name)
        self._identity = f"{self._client.meta.endpoint_url}/{self._place.bucket}/{self._place.key}"

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
        for left in reversed(range(RENEWALS + 1)):
            client = self._client
            try:
                return self._send(client, request, is_open=version is not None)
            except _CredentialsRefused as refused:
                if not left:
                    raise refused.error from refused
                # The files or the service that they come from may have newer ones by now.
                self._client = _Clients.renew(client, self._options, self._name)
        raise AssertionError

    def _send(self, client: Any, request: dict[str, Any], *, is_open: bool) -> "S3Answer | EmptyAnswer":
        try:
            return S3Answer(client.get_object(**request))
        except ClientError as error:
            return self._refused(error, is_open=is_open)
        except (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError) as error:
            raise AccessDenied(f"{self._name}: the credentials cannot be had: {printable(str(error))}") from error
        except ReadTimeoutError as error:
            raise Transient("the server did not answer in time") from error
        except (EndpointConnectionError, ConnectTimeoutError) as error:
            raise Transient("the server cannot be reached", connecting=True) from error
        except ConnectionClosedError as error:
            raise Transient("the connection broke before the answer") from error
        except BotoCoreError as error:
            if "Validation" in type(error).__name__:
                raise SourceError(f"{self._name}: {printable(str(error))}") from error
            raise Transient(f"the request failed ({type(error).__name__})") from error

    def _refused(self, error: ClientError, *, is_open: bool) -> EmptyAnswer:
        metadata = error.response.get("ResponseMetadata", {})
        status = int(metadata.get("HTTPStatusCode", 0))
        headers = {name.lower(): value for name, value in metadata.get("HTTPHeaders", {}).items()}
        code = str(error.response.get("Error", {}).get("Code", ""))
        if status == 416 or code == "InvalidRange":
            return EmptyAnswer(headers)
        if status == 412 or code == "PreconditionFailed":
            raise SourceChanged(f"{self._name}: the object was changed since it was opened; open or mount it again")
        if code in _LATER:
            raise Transient(f"the server answered {status} {code}", after=seconds_asked(headers.get("retry-after")))
        final = self._final(status, code, headers, is_open=is_open)
        if code in _EXPIRED or code in _MAYBE_ROTATED:
            raise _CredentialsRefused(final) from error
        raise final from error

    def _final(self, status: int, code: str, headers: dict[str, str], *, is_open: bool) -> Exception:
        name = self._name
        if code in _EXPIRED:
            return AccessDenied(f"{name}: the credentials have expired ({code}); renew them, reading then goes on")
        if code in {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken"}:
            return AccessDenied(f"{name}: the credentials are not accepted ({code}); check profile and region")
        if code == "NoSuchBucket":
            return SourceNotFound(f"{name}: there is no such bucket")
        if code in {"PermanentRedirect", "AuthorizationHeaderMalformed", "301"}:
            region = printable(headers.get("x-amz-bucket-region", ""), 40)
            return SourceError(
                f"{name}: the bucket is in another region{f', {region}' if region else ''}; use --region"
            )
        if code == "InvalidObjectState":
            return UnsupportedFeature(f"{name}: the object is archived; restore it from its storage class first")
        if code in {"AccessDenied", "AllAccessDisabled", "403"}:
            return AccessDenied(
                f"{name}: reading it is denied ({code}); it needs s3:GetObject"
                + (
                    ", and of a bucket whose requester pays, --request-payer"
                    if not self._options.requester_pays
                    else ""
                )
            )
        return error_of(status, code, name, seconds_asked(headers.get("retry-after")), is_open=is_open)

    def close(self) -> None:
        pass


class _CredentialsRefused(Exception):
    """The server did not take the credentials; `error` is what it means if newer ones are no better."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class _Way(NamedTuple):
    """What a client is made for."""

    endpoint_url: str | None
    region: str | None
    profile: str | None
    sign: bool
    read_timeout: float


class _Clients:
    """One client for each way of reaching S3, made once."""

    _lock = threading.Lock()
    _made: dict[_Way, Any] = {}

    @classmethod
    def get(cls, options: RemoteOptions, name: str) -> Any:
        with cls._lock:
            client = cls._made.get(_way(options))
            if client is None:
                client = cls._made[_way(options)] = _make(options, name)
            return client

    @classmethod
    def renew(cls, refused: Any, options: RemoteOptions, name: str) -> Any:
        """Return a client with credentials looked for anew, the same for all whose client was refused."""
        with cls._lock:
            if cls._made.get(_way(options)) is refused:
                cls._made[_way(options)] = _make(options, name)
            return cls._made[_way(options)]


def _way(options: RemoteOptions) -> _Way:
    return _Way(
        options.endpoint_url, options.region, options.profile, options.sign, min(IDLE_TIMEOUT, options.deadline)
    )


def _make(options: RemoteOptions, name: str) -> Any:
    return s3_client(**_way(options)._asdict(), location=name)


@functools.lru_cache(maxsize=64)
def parse_place(location: str, name: str) -> S3Place:
    """Return bucket, key and version of s3://BUCKET/KEY[?versionId=ID]; raises SourceError."""
    bucket, slash, rest = location.partition("://")[2].partition("/")
    key, version_id = rest, None
    # A key may hold a question mark: only what is nothing but a version belongs to us.
    head, mark, query = rest.rpartition("?versionId=")
    if mark:
        fields = parse_qsl(f"versionId={query}")
        key, version_id = head, fields[0][1] if fields else None
    if not slash or not key or not _BUCKET.fullmatch(bucket) or len(key.encode("utf-8", "surrogateescape")) > 1024:
        raise SourceError(f"{name}: it names no object; expected s3://BUCKET/KEY or s3://BUCKET/KEY?versionId=ID")
    return S3Place(bucket, key, version_id)
