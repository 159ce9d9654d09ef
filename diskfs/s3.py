"""Requests to S3 and services that speak its protocol, by boto3: its credentials, profiles, regions and endpoints.

What reading and writing have in common: one client for each way of reaching S3, credentials that are looked for anew
when they are refused, and errors told apart by what can be done about them. Loaded only for s3:// locations.
"""

import functools
import re
import threading
from typing import Any, NamedTuple
from urllib.parse import unquote

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

from diskfs.clients import CONNECT_TIMEOUT, s3_client
from diskfs.errors import AccessDenied, SourceError
from diskfs.retrying import Transient, seconds_asked
from diskfs_formats.text import printable

RENEWALS = 2
"""How often credentials that are refused are looked for anew in one request: they may just be changing."""
EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"})
NOT_ACCEPTED = frozenset({"InvalidAccessKeyId", "InvalidToken", "SignatureDoesNotMatch"})
"""What a server says of credentials that were replaced meanwhile, as well as of wrong ones."""
ELSEWHERE = frozenset({"PermanentRedirect", "AuthorizationHeaderMalformed", "301"})
"""What a server says whose region is not the bucket's."""
DENIED = frozenset({"AccessDenied", "AllAccessDisabled", "403"})
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_LATER = frozenset(
    {
        "RequestTimeout", "RequestTimeoutException", "SlowDown", "Throttling", "ThrottlingException", "InternalError",
        "ServiceUnavailable", "RequestThrottled", "RequestLimitExceeded", "PriorRequestNotComplete",
        "BandwidthLimitExceeded", "TooManyRequests", "503", "500", "502", "504", "429",
    }
)  # fmt: skip


class S3Place(NamedTuple):
    """What an s3:// location names."""

    bucket: str
    key: str
    version_id: str | None


class Way(NamedTuple):
    """How S3 is reached: what a client is made for. The timeouts are in seconds without a byte received, or taken."""

    endpoint_url: str | None
    region: str | None
    profile: str | None
    sign: bool
    read_timeout: float
    send_timeout: float = CONNECT_TIMEOUT


class Refused(Exception):
    """The server's answer is no, and asking again would not change it. Its text has no secrets.

    `status` and `code` are the server's, `headers` have lower-case names.
    """

    def __init__(self, status: int, code: str, headers: dict[str, str]) -> None:
        super().__init__(f"{status} {printable(code, 60)}".rstrip())
        self.status = status
        self.code = code
        self.headers = headers

    def of_credentials(self) -> str | None:
        """Say what is wrong if it is about credentials or the region; None if it is not."""
        if self.code in EXPIRED:
            return f"the credentials have expired ({self.code}); renew them"
        if self.code in NOT_ACCEPTED:
            return f"the credentials are not accepted ({self.code}); check profile and region"
        if self.code in ELSEWHERE:
            region = printable(self.headers.get("x-amz-bucket-region", ""), 40)
            return f"the bucket is in another region{f', {region}' if region else ''}; use --region"
        return None


class S3Requests:
    """Sends requests on behalf of one location. Shared by threads."""

    def __init__(self, way: Way, name: str) -> None:
        """Find credentials and make the client, or take the one there is; raises AccessDenied or SourceError."""
        self._way = way
        self._name = name
        self._client = _Clients.get(way, name)

    @property
    def endpoint(self) -> str:
        """The URL of the service."""
        return str(self._client.meta.endpoint_url)

    def send(self, operation: str, request: dict[str, Any]) -> dict[str, Any]:
        """Call an operation of boto3's client once, or again with newer credentials if those that it had are refused.

        A body is a file, sent from its beginning. Raises Refused, Transient for what may go better next time,
        AccessDenied if there are no credentials, and SourceError for a request that boto3 does not take.
        """
        body = request.get("Body")
        for left in reversed(range(RENEWALS + 1)):
            client = self._client
            if body is not None:
                # An earlier try has read it.
                body.seek(0)
            try:
                return self._send(client, operation, request)
            except Refused as refused:
                # A refused HEAD has no words: nearly always it is a right that is missing, and not the credentials.
                if not left or operation == "head_object" or refused.code not in EXPIRED | NOT_ACCEPTED | {"403"}:
                    raise
                # The files or the service that they come from may have newer ones by now.
                self._client = _Clients.renew(client, self._way, self._name)
        raise AssertionError

    def _send(self, client: Any, operation: str, request: dict[str, Any]) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = getattr(client, operation)(**request)
        except ClientError as error:
            raise _refused(error) from error
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
        return answer


def _refused(error: ClientError) -> Refused | Transient:
    metadata = error.response.get("ResponseMetadata", {})
    status = int(metadata.get("HTTPStatusCode", 0))
    headers = {name.lower(): value for name, value in metadata.get("HTTPHeaders", {}).items()}
    code = str(error.response.get("Error", {}).get("Code", ""))
    if code in _LATER:
        return Transient(f"the server answered {status} {code}", after=seconds_asked(headers.get("retry-after")))
    return Refused(status, code, headers)


class _Clients:
    """One client for each way of reaching S3, made once."""

    _lock = threading.Lock()
    _made: dict[Way, Any] = {}

    @classmethod
    def get(cls, way: Way, name: str) -> Any:
        with cls._lock:
            client = cls._made.get(way)
            if client is None:
                client = cls._made[way] = s3_client(**way._asdict(), location=name)
            return client

    @classmethod
    def renew(cls, refused: Any, way: Way, name: str) -> Any:
        """Return a client with credentials looked for anew, the same for all whose client was refused."""
        with cls._lock:
            if cls._made.get(way) is refused:
                cls._made[way] = s3_client(**way._asdict(), location=name)
            return cls._made[way]


@functools.lru_cache(maxsize=64)
def parse_place(location: str, name: str) -> S3Place:
    """Return bucket, key and version of s3://BUCKET/KEY[?versionId=ID]; raises SourceError."""
    bucket, slash, rest = location.partition("://")[2].partition("/")
    key, version_id = rest, None
    # A key may hold a question mark: only what is nothing but a version belongs to us.
    head, mark, query = rest.rpartition("?versionId=")
    if mark:
        # Not as a form is read: a plus sign is one.
        key, version_id = head, unquote(query.partition("&")[0]) or None
    try:
        size = len(key.encode())
    except UnicodeEncodeError as error:
        raise SourceError(f"{name}: keys of objects are UTF-8, and this one is not") from error
    if not slash or not key or not _BUCKET.fullmatch(bucket) or size > 1024:
        raise SourceError(f"{name}: it names no object; expected s3://BUCKET/KEY or s3://BUCKET/KEY?versionId=ID")
    return S3Place(bucket, key, version_id)
