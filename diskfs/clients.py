"""Clients for HTTP and AWS: time limits, connections, and no retries of their own.

A library that retries by itself cannot know what a read may cost in all, and starts a body again from its first byte;
`diskfs.sources.remote` does both. Nothing here is loaded for a path.
"""

import http.client
import io
import ipaddress
import logging
import queue
import socket
import threading
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from diskfs.errors import AccessDenied, SourceError, SourceNotFound
from diskfs.proxies import Proxy
from diskfs_formats.errors import UnsafeReference
from diskfs_formats.text import printable

MAX_CONNECTIONS = 32
"""Requests under way at once. Measured with 30 ms a request: the throughput of one process no longer grows above."""
CONNECT_TIMEOUT = 5.0
READ_TIMEOUT = 15.0
LOOKUP_TIMEOUT = 2.0
"""Seconds that looking up a name may take which a proxy will look up anyway."""

# What these log may hold signed addresses and headers, at every level.
for _name in ("urllib3", "botocore", "boto3", "s3transfer"):
    logging.getLogger(_name).addHandler(logging.NullHandler())
    logging.getLogger(_name).propagate = False


def user_agent() -> str:
    """Return what servers are told that we are."""
    return f"diskfs/{version('diskfs')}"


def resolve(host: str, port: int, shown: str, *, allow_private: bool) -> Sequence[str]:
    """Return the addresses of a host, to connect to without asking again: a second answer could be another one.

    A name that leads to an address which is not public (the own machine, a private network, a cloud's metadata
    service) raises UnsafeReference unless `allow_private`. An address that the user wrote as such, or `localhost`, is
    what the user meant. Raises SourceNotFound, or SourceError.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        kind = SourceNotFound if error.errno == socket.EAI_NONAME else SourceError
        raise kind(f"{shown}: the host {printable(host)!r} cannot be resolved: {error.strerror}") from error
    except (OSError, UnicodeError) as error:
        raise SourceError(f"{shown}: the host {printable(host)!r} cannot be resolved: {error}") from error
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if not allow_private and not is_meant(host):
        _require_public(host, addresses, shown)
    return addresses


def check_proxied(host: str, port: int, shown: str, *, allow_private: bool) -> None:
    """Raise what `resolve` does for a host that a proxy will resolve, as far as can be known here.

    An address, however it is spelled, is checked as without a proxy. For a name the proxy's answer counts, and the
    proxy's own rules; a name that leads to an address which is not public here most likely does there. Nor need it be
    known here: that is why there are proxies.
    """
    try:
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        if not allow_private and not is_meant(host):
            _require_public(host, _known_here(host, port), shown)
    else:
        resolve(host, port, shown, allow_private=allow_private)


def _known_here(host: str, port: int) -> Sequence[str]:
    """Return the addresses of a name, or none if it has none, or no name server says so in time."""
    answers: queue.SimpleQueue[list[str]] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            found = []
        answers.put([str(entry[4][0]) for entry in found])

    threading.Thread(target=look_up, name="diskfs-lookup", daemon=True).start()
    try:
        return answers.get(timeout=LOOKUP_TIMEOUT)
    except queue.Empty:
        return []


def _require_public(host: str, addresses: Sequence[str], shown: str) -> None:
    for address in addresses:
        if not ipaddress.ip_address(address.partition("%")[0]).is_global:
            raise UnsafeReference(
                f"{shown}: the host {printable(host)!r} has the address {address}, which is not public; "
                "use --allow-private if that is intended"
            )


_METADATA_IPV6 = ipaddress.ip_address("fd00:ec2::254")
"""Where Amazon's service for a machine's credentials is by IPv6 (EC2 User Guide, "Access instance metadata")."""


def is_meant(host: str) -> bool:
    """Tell whether a host says by itself which address it is."""
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    # The service that hands out a machine's credentials is nobody's file server.
    return not address.is_link_local and address != _METADATA_IPV6


def http_pool(scheme: str, host: str, port: int, address: str) -> urllib3.HTTPConnectionPool:
    """Return connections to one address of a host; certificates are checked for the host's name."""
    common = _pool_options()
    if scheme == "https":
        return _punctual(
            urllib3.HTTPSConnectionPool(address, port, server_hostname=host, assert_hostname=host, **common)
        )
    return _punctual(urllib3.HTTPConnectionPool(address, port, **common))


def proxied_pool(scheme: str, host: str, port: int, proxy: Proxy) -> urllib3.HTTPConnectionPool:
    """Return connections to a host by way of a proxy: through it (CONNECT) for https, to it for http.

    In the latter case requests have to name the whole URL. Certificates are checked for the host's name.
    """
    headers = {"User-Agent": user_agent()}
    if proxy.authorization is not None:
        headers["Proxy-Authorization"] = proxy.authorization
    manager = urllib3.ProxyManager(proxy.url, proxy_headers=headers, **_pool_options())
    return _punctual(manager.connection_from_host(host, port, scheme))


class _TimedInput(io.RawIOBase):
    """What comes from a connection, until `end`, a monotonic time. A socket's timeout is for each byte anew."""

    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw = raw
        self.end: float | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, room: Any, /) -> int | None:
        if self.end is not None and time.monotonic() > self.end:
            raise TimeoutError("the header of the answer does not end")
        count: int | None = self._raw.readinto(room)
        return count

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
            super().close()


class _PunctualResponse(http.client.HTTPResponse):
    """An answer whose header has to come within the connection's timeout, and not each of its bytes."""

    def __init__(self, sock: socket.socket, *arguments: Any, **more: Any) -> None:
        super().__init__(sock, *arguments, **more)
        self._input = _TimedInput(self.fp.detach())
        self.fp = io.BufferedReader(self._input)
        self._limit = sock.gettimeout()

    def begin(self) -> None:
        if self._limit is not None:
            self._input.end = time.monotonic() + self._limit
        super().begin()
        self._input.end = None


class _PunctualConnection(HTTPConnection):
    response_class = _PunctualResponse


class _PunctualTlsConnection(HTTPSConnection):
    response_class = _PunctualResponse


def _punctual(pool: urllib3.HTTPConnectionPool) -> urllib3.HTTPConnectionPool:
    """Have all connections of a pool give up headers that do not end."""
    is_tls = isinstance(pool, urllib3.HTTPSConnectionPool)
    pool.ConnectionCls = _PunctualTlsConnection if is_tls else _PunctualConnection
    return pool


def _pool_options() -> dict[str, Any]:
    return {
        "maxsize": MAX_CONNECTIONS,
        "block": False,
        "retries": False,
        "timeout": urllib3.Timeout(connect=CONNECT_TIMEOUT, read=READ_TIMEOUT),
    }


def s3_client(
    *,
    endpoint_url: str | None,
    region: str | None,
    profile: str | None,
    sign: bool,
    read_timeout: float,
    location: str,
    send_timeout: float = CONNECT_TIMEOUT,
) -> Any:
    """Return a client for S3, with boto3's own search for credentials. Raises AccessDenied, or SourceError.

    `send_timeout` is how many seconds connecting may take, and each piece of a body until the network has taken it.
    """
    import boto3  # noqa: PLC0415 - takes a fifth of a second
    from botocore import UNSIGNED  # noqa: PLC0415
    from botocore.config import Config  # noqa: PLC0415
    from botocore.exceptions import BotoCoreError  # noqa: PLC0415

    config = Config(
        max_pool_connections=MAX_CONNECTIONS,
        tcp_keepalive=True,
        connect_timeout=send_timeout,
        read_timeout=read_timeout,
        retries={"mode": "standard", "total_max_attempts": 1},
        # A range must not be checked against the sum of the whole object, which some servers send with it.
        response_checksum_validation="when_required",
        signature_version="s3v4" if sign else UNSIGNED,
        user_agent_extra=user_agent(),
    )
    try:
        session = boto3.Session(profile_name=profile, region_name=region)
        if sign and session.get_credentials() is None:
            raise AccessDenied(
                f"{location}: there are no credentials for S3; configure them as for the aws command, name a profile "
                "with --profile, or use --no-sign-request for a public bucket"
            )
        default = None if session.region_name else "us-east-1"
        return session.client("s3", endpoint_url=endpoint_url, region_name=default, config=config)
    except (BotoCoreError, ValueError) as error:
        # Of a URL that is none it cannot be told what in it is a password.
        if "endpoint" in str(error).lower():
            problem = "the URL of the service (--endpoint-url, or as configured) is none; expected http(s)://HOST:PORT"
        else:
            problem = printable(str(error))
        raise SourceError(f"{location}: the client for S3 cannot be made: {problem}") from error
