"""Files behind http:// and https:// URLs, signed ones included, read by ranges.

Specification: RFC 9110 (ranges, conditional requests, redirects). The URL is opened as it is given: its query string
may be a signature, and appears in no message.
"""

import base64
import http.client
import re
import ssl
import threading
from collections.abc import Sequence
from urllib.parse import SplitResult, urljoin, urlsplit

import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NewConnectionError,
    ProxyError,
    ReadTimeoutError,
    SSLError,
)

from diskfs.clients import CONNECT_TIMEOUT, check_proxied, http_pool, proxied_pool, resolve, user_agent
from diskfs.errors import AccessDenied, SourceChanged, SourceError, SourceNotFound
from diskfs.proxies import Proxy, bracketed, proxy_for
from diskfs.retrying import Transient, seconds_asked
from diskfs.sources.bodies import close_body, read_body, read_body_into
from diskfs.sources.locations import RemoteOptions, shown
from diskfs.sources.remote import Version
from diskfs_formats.errors import UnsafeReference
from diskfs_formats.text import printable

MAX_REDIRECTS = 5
_ERROR_SIZE = 1024
_ERROR_CODE = re.compile(rb"<Code>([A-Za-z]{1,60})</Code>")
_TUNNEL_REFUSED = re.compile(r"Tunnel connection failed: ([0-9]{3})")
_PORTS = {"http": 80, "https": 443}
_SIGNATURE = re.compile(
    r"(x-(amz|goog|oss|cos|obs|ms)-[a-z0-9-]+|signature|expires|policy|key-pair-id|awsaccesskeyid|googleaccessid"
    r"|ossaccesskeyid|sig|se|st|sp|sv|sr|spr|sip|skoid|sktid|skt|ske|sks|skv)(=|$)",
    re.IGNORECASE,
)
"""Fields that signed URLs of Amazon S3 and CloudFront, Google, Azure, and the like have for their permission."""
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_LATER = frozenset({408, 425, 429, 500, 502, 503, 504, 509, 520, 521, 522, 523, 524, 529, 530})
"""Answers after which another try may go better; those above 504 are of load balancers and content networks."""


class HttpAnswer:
    """An answer whose body is read as it comes."""

    def __init__(self, response: urllib3.BaseHTTPResponse) -> None:
        self._response = response
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.headers.items()}

    def read(self, length: int, /) -> bytes:
        return read_body(self._response, length)

    def read_into(self, room: memoryview, /) -> int:
        return read_body_into(self._response, room)

    def close(self) -> None:
        close_body(self._response)


class HttpTransport:
    """Requests for one URL. Redirects are followed within its host alone, and asked for anew when they stop working."""

    def __init__(self, location: str, options: RemoteOptions) -> None:
        """Check the URL and resolve its host, once, unless a proxy is to do so.

        Raises UnsafeReference, SourceNotFound, SourceError, or UnsupportedFeature for a kind of proxy.
        """
        self._name = printable(shown(location), 2000)
        self._original = location
        self._redirected: str | None = None
        parts = _split(location, self._name)
        assert parts.hostname is not None
        self._scheme = parts.scheme.lower()
        self._host = parts.hostname
        self._port = parts.port or _PORTS[self._scheme]
        self._authorization = _basic_authorization(parts)
        self._ascii_host = _in_ascii(self._host, self._name)
        self._host_header = parts.netloc.rpartition("@")[2]
        if not self._host_header.isascii():
            self._host_header = f"{self._ascii_host}:{self._port}"
        self._identity = _identity(parts)
        self._proxy = proxy_for(self._scheme, self._host, self._port, self._name)
        self._addresses: Sequence[str] = ()
        if self._proxy is None:
            self._addresses = resolve(self._host, self._port, self._name, allow_private=options.allow_private)
        else:
            check_proxied(self._host, self._port, self._name, allow_private=options.allow_private)
        self._pool: urllib3.HTTPConnectionPool | None = None
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        return self._name

    @property
    def identity(self) -> str:
        return self._identity

    def get(self, first: int | None, last: int | None, version: Version | None, timeout: float, /) -> HttpAnswer:
        headers = {"Accept-Encoding": "identity", "User-Agent": user_agent(), "Host": self._host_header}
        if first is not None:
            headers["Range"] = f"bytes={first}-{last}"
        if version is not None:
            if version.strong_etag is not None:
                headers["If-Match"] = version.strong_etag
            elif version.modified is not None:
                headers["If-Unmodified-Since"] = version.modified
        if self._authorization is not None:
            headers["Authorization"] = self._authorization
        redirected = self._redirected
        answer = self._follow(redirected or self._original, headers, timeout)
        if redirected is not None and answer.status in {401, 403, 404, 410}:
            # What a redirect leads to may be valid for a while only.
            answer.close()
            self._redirected = None
            answer = self._follow(self._original, headers, timeout)
        if answer.status in {200, 206, 416}:
            return answer
        # Storage services say in the body what a 400 or 403 is about.
        code = _error_code(answer) if answer.status in {400, 403} else ""
        answer.close()
        retry_after = seconds_asked(answer.headers.get("retry-after"))
        raise error_of(answer.status, code, self._name, retry_after, is_open=version is not None)

    def _follow(self, url: str, headers: dict[str, str], timeout: float) -> HttpAnswer:
        for _ in range(MAX_REDIRECTS + 1):
            response = self._send(url, headers, timeout)
            if response.status not in _REDIRECTS:
                return HttpAnswer(response)
            location = response.headers.get("location", "")
            response.close()
            try:
                target = urljoin(url, location)
            except ValueError:
                # As it is, it is refused for being no place of this host.
                target = location
            self._require_same_host(target)
            url = self._redirected = target
        raise SourceError(f"{self._name}: it was redirected over {MAX_REDIRECTS} times")

    def _send(self, url: str, headers: dict[str, str], timeout: float) -> urllib3.BaseHTTPResponse:
        parts = urlsplit(url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if self._proxy is not None and self._scheme == "http":
            # RFC 9112, section 3.2.2: a proxy is asked for the whole URL.
            target = f"http://{bracketed(self._ascii_host)}:{self._port}{target}"
        try:
            return self._connections().urlopen(
                "GET",
                target,
                headers=headers,
                redirect=False,
                retries=False,
                preload_content=False,
                assert_same_host=False,
                timeout=urllib3.Timeout(connect=min(CONNECT_TIMEOUT, timeout), read=timeout),
            )
        except ReadTimeoutError as error:
            raise Transient(f"the server did not answer within {timeout:.0f} s") from error
        except SSLError as error:
            raise _tls_error(error, self._name) from error
        except ProxyError as error:
            assert self._proxy is not None
            raise _proxy_error(error, self._proxy, self._name) from error
        except (NewConnectionError, ConnectTimeoutError) as error:
            self._try_next_address()
            reason = _cause(error) if isinstance(error, NewConnectionError) else "no connection in time"
            raise Transient(f"the server cannot be reached ({reason})", connecting=True) from error
        except (HTTPError, http.client.HTTPException, OSError) as error:
            raise Transient(f"the connection broke before the answer ({type(error).__name__})") from error

    def _connections(self) -> urllib3.HTTPConnectionPool:
        with self._lock:
            if self._pool is None:
                if self._proxy is not None:
                    self._pool = proxied_pool(self._scheme, self._ascii_host, self._port, self._proxy)
                else:
                    self._pool = http_pool(self._scheme, self._ascii_host, self._port, self._addresses[0])
            return self._pool

    def _try_next_address(self) -> None:
        """Turn to the host's next address: not every one need be reachable from here."""
        with self._lock:
            if len(self._addresses) > 1:
                self._addresses = [*self._addresses[1:], self._addresses[0]]
                self._pool = None

    def _require_same_host(self, target: str) -> None:
        where = printable(shown(target), 200)
        try:
            parts = urlsplit(target)
            scheme, host = parts.scheme.lower(), (parts.hostname or "").lower()
            same = (scheme, host, parts.port or _PORTS.get(scheme)) == (self._scheme, self._host.lower(), self._port)
        except ValueError:
            same = False
            parts = SplitResult("", "", "", "", "")
        if not same or "@" in parts.netloc:
            raise UnsafeReference(
                f"{self._name}: the server redirects to {where!r}, which is another place; redirects are followed "
                "within one host only, so name that location itself if you trust it"
            )

    def close(self) -> None:
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()


def error_of(status: int, code: str, name: str, retry_after: float, *, is_open: bool) -> Exception:
    """Return what an answer that is not the range means; `code` is a storage service's own word for it."""
    shown_code = f"{status} {printable(code, 60)}".rstrip()
    if status in _LATER or code == "RequestTimeout":
        return Transient(f"the server answered {shown_code}", after=retry_after)
    if status == 412:
        return SourceChanged(f"{name}: the object was changed since it was opened; open or mount it again")
    if status in {404, 410}:
        if is_open:
            return SourceChanged(f"{name}: the object was deleted since it was opened")
        return SourceNotFound(f"{name}: there is no such object (the server answered {shown_code})")
    if status == 407:
        return AccessDenied(f"{name}: the proxy asks for a user and password, or refuses those it was given")
    if status in {401, 403}:
        hint = "; a signed URL may have expired" if is_open else "; a signed URL must be whole and not expired"
        return AccessDenied(f"{name}: reading it is denied (the server answered {shown_code}){hint}")
    return SourceError(f"{name}: the server answered {shown_code}")


def _error_code(answer: HttpAnswer) -> str:
    match = _ERROR_CODE.search(answer.read(_ERROR_SIZE))
    return match[1].decode() if match else ""


def _split(location: str, name: str) -> SplitResult:
    try:
        parts = urlsplit(location)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise SourceError(f"{name}: it is no URL: {error}") from error
    if not host or any(character.isspace() or ord(character) < 32 for character in location):
        raise SourceError(f"{name}: it is no URL: expected http(s)://HOST/PATH without spaces")
    return parts


def _identity(parts: SplitResult) -> str:
    """Return what tells a URL's file from others: all of it but the user, and what in the query is of a signature.

    A query may say which file it is (`?id=1`), and servers whose ETags are made of time and size give two files the
    same one. Signatures change from day to day, and what they are for does not.
    """
    query = "&".join(field for field in parts.query.split("&") if not _SIGNATURE.match(field))
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme.lower()}://{host}{parts.path}" + (f"?{query}" if query else "")


def _basic_authorization(parts: SplitResult) -> str | None:
    if parts.username is None:
        return None
    from urllib.parse import unquote  # noqa: PLC0415

    # RFC 7617, section 2.1: in UTF-8, as curl sends what is typed.
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode("utf-8", "surrogateescape")
    return "Basic " + base64.b64encode(pair).decode()


def _tls_error(error: Exception, name: str) -> Exception:
    text = printable(str(error.__cause__ or error), 200)
    if "CERTIFICATE_VERIFY_FAILED" in text or "match" in text:
        return SourceError(f"{name}: the server's certificate is not accepted: {text}")
    return Transient("the encrypted connection broke")


def _proxy_error(error: ProxyError, proxy: Proxy, name: str) -> Exception:
    """Return what it means that a proxy makes no connection. No text of the library's is shown: it may have secrets."""
    cause = error.__cause__ or error
    if isinstance(cause, SSLError | ssl.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(cause):
        return SourceError(f"{name}: the certificate of the proxy {proxy} of {proxy.variable} is not accepted")
    match = _TUNNEL_REFUSED.search(str(cause))
    if match is None:
        return Transient(f"the proxy {proxy} of {proxy.variable} cannot be reached ({_cause(cause)})", connecting=True)
    status = int(match[1])
    if status in _LATER:
        return Transient(f"the proxy {proxy} of {proxy.variable} answered {status}")
    if status == 407:
        return AccessDenied(
            f"{name}: the proxy {proxy} asks for a user and password, or refuses those that {proxy.variable} has "
            "(http://USER:PASSWORD@HOST:PORT)"
        )
    return AccessDenied(f"{name}: the proxy {proxy} of {proxy.variable} refuses the connection (it answered {status})")


def _in_ascii(host: str, name: str) -> str:
    try:
        return host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError as error:
        raise SourceError(f"{name}: the host {printable(host)!r} is no name of a host") from error


def _cause(error: BaseException) -> str:
    cause = error.__cause__ or error
    return getattr(cause, "strerror", None) or type(cause).__name__
