"""A server of objects by HTTP, and by as much of S3's protocol as reading needs, that fails on demand.

It counts requests, faults and bytes itself, so that a test can tell what really went over the wire.
"""

import contextlib
import io
import itertools
import random
import re
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import unquote

from tests.servers.faults import planned

_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
FAULTS = (
    "503", "500", "429", "timeout-400", "reset", "cut", "cut-header", "stall", "stall-body", "slow", "whole", "shifted",
    "no-range-header", "extra", "gzip", "refused-keepalive",
)  # fmt: skip
"""Ways of answering wrongly. `stall` and `stall-body` keep the client waiting for `stall_seconds`."""


@dataclass
class Stored:
    """An object and its version."""

    data: bytes | Path
    etag: str | None
    modified: str | None = "Thu, 01 Oct 2026 10:00:00 GMT"
    ranges: bool = True

    @property
    def size(self) -> int:
        return len(self.data) if isinstance(self.data, bytes) else self.data.stat().st_size

    def read(self, offset: int, length: int) -> bytes:
        if isinstance(self.data, bytes):
            return self.data[offset : offset + length]
        with self.data.open("rb") as file:
            file.seek(offset)
            return file.read(length)


@dataclass(frozen=True)
class Request:
    """One line of the server's log."""

    method: str
    path: str
    range: tuple[int, int] | None
    headers: dict[str, str] = field(repr=False)
    fault: str | None = None
    sent: int = 0


class FaultyServer:
    """Serves `objects` by path. `choose` picks a fault, or None, for each request; it is called under a lock."""

    def __init__(self, address: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> None:
        self._address = address
        self._tls = tls
        self.objects: dict[str, Stored] = {}
        self.redirects: dict[str, tuple[int, str]] = {}
        self.log: list[Request] = []
        self.choose: Callable[[Request], str | None] = lambda request: None
        self.denied: Callable[[Request], tuple[int, str] | None] = lambda request: None
        self.latency = 0.0
        self.stall_seconds = 20.0
        self.sent = 0
        self.released = threading.Event()
        self.hold: Callable[[Request], bool] = lambda request: False
        """Requests that are kept waiting until `released` is set."""
        self.down = False
        self._lock = threading.Lock()
        self._etags = itertools.count(1)
        self._server: _Threaded | None = None
        self._thread: threading.Thread | None = None
        self._port = 0

    def __enter__(self) -> Self:
        self._server = (_ThreadedIPv6 if ":" in self._address else _Threaded)((self._address, 0), _Handler)
        if self._tls is not None:
            self._server.socket = self._tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._server.owner = self
        self._port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.released.set()
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()
        self._server.end_connections()

    @property
    def endpoint(self) -> str:
        """The server's own URL, without a path."""
        host = f"[{self._address}]" if ":" in self._address else self._address
        return f"{'https' if self._tls else 'http'}://{host}:{self._port}"

    def put(self, path: str, data: bytes | Path, **how: object) -> str:
        """Store an object, as a new version, and return its URL."""
        values: dict[str, object] = {"etag": f'"v{next(self._etags)}"', **how}
        self.objects[path] = Stored(data, **values)  # type: ignore[arg-type]  # the test's own words
        return f"{self.endpoint}/{path}"

    def fail(self, rate: float, kinds: tuple[str, ...] = FAULTS, seed: int = 1) -> None:
        """Answer a share of all requests wrongly, each kind as often as any other."""
        faults = planned(rate, kinds, seed)
        self.choose = lambda request: next(faults)

    def counted(self) -> Counter[str]:
        """Return how many requests met which fault; "" for those that met none."""
        with self._lock:
            return Counter(request.fault or "" for request in self.log)

    @contextlib.contextmanager
    def outage(self) -> Iterator[None]:
        """Refuse everything for a while: connections are closed as soon as they are made."""
        self.down = True
        assert self._server is not None
        self._server.end_connections()
        try:
            yield
        finally:
            self.down = False

    def note(self, request: Request) -> str | None:
        """Enter a request in the log, and return its fault."""
        with self._lock:
            fault = self.choose(request)
            self.log.append(Request(request.method, request.path, request.range, request.headers, fault))
            return fault


class _Threaded(ThreadingHTTPServer):
    daemon_threads = True
    owner: FaultyServer
    request_queue_size = 128

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]  # as socketserver takes them
        self._connections: set[socket.socket] = set()

    def process_request(self, request: object, client_address: object) -> None:
        assert isinstance(request, socket.socket)
        if self.owner.down:
            request.close()
            return
        self._connections.add(request)
        super().process_request(request, client_address)

    def end_connections(self) -> None:
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._connections.clear()

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients close connections that have become useless; that is no error here."""


class _ThreadedIPv6(_Threaded):
    address_family = socket.AF_INET6


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Threaded
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """The log is a list."""

    def do_HEAD(self) -> None:
        self.server.owner.note(self._request())
        self._refuse(403, "AccessDenied")

    def do_GET(self) -> None:
        owner = self.server.owner
        request = self._request()
        fault = owner.note(request)
        if owner.down:
            self.close_connection = True
            return
        if owner.latency:
            time.sleep(owner.latency)
        if owner.hold(request):
            owner.released.wait()
        if denied := owner.denied(request):
            self._refuse(*denied)
            return
        path = unquote(self.path.partition("?")[0].lstrip("/"))
        if redirect := owner.redirects.get(path):
            self._send(redirect[0], {"Location": redirect[1]}, b"")
            return
        stored = owner.objects.get(path)
        if stored is None:
            self._refuse(404, "NoSuchKey")
        elif (wanted := self.headers.get("If-Match")) is not None and wanted != stored.etag:
            self._refuse(412, "PreconditionFailed")
        elif self._before_any_body(fault):
            self._answer(stored, request, fault)

    def _before_any_body(self, fault: str | None) -> bool:
        """Answer with a fault that needs no object; tell whether the object is still to be sent."""
        match fault:
            case "503":
                self._refuse(503, "SlowDown")
            case "500":
                self._refuse(500, "InternalError")
            case "429":
                self._refuse(429, "TooManyRequests", {"Retry-After": "1"})
            case "timeout-400":
                self._refuse(400, "RequestTimeout")
            case "reset":
                self._reset()
            case "cut-header":
                self.wfile.write(b"HTTP/1.1 206 Part")
                self.close_connection = True
            case "stall":
                time.sleep(self.server.owner.stall_seconds)
                self.close_connection = True
            case _:
                return True
        return False

    def _answer(self, stored: Stored, request: Request, fault: str | None) -> None:
        size = stored.size
        headers = {"Last-Modified": stored.modified, "ETag": stored.etag}
        first, last = request.range or (0, size - 1)
        last = min(last, size - 1)
        if not stored.ranges or fault == "whole" or request.range is None:
            first, last, status = 0, size - 1, 200
        elif first >= size:
            self._refuse(416, "InvalidRange", {"Content-Range": f"bytes */{size}"})
            return
        else:
            status = 206
            if fault == "shifted":
                first = first + 1 if first < last else first - 1 if first else first
                last = min(last + 1, size - 1) if last < size - 1 else last
            if fault != "no-range-header":
                headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        data = stored.read(first, last + 1 - first)
        if fault == "gzip":
            headers["Content-Encoding"] = "gzip"
        if fault == "extra":
            data += b"more"
        if fault == "whole" and size > 1 << 20:
            # Nobody reads it to the end.
            self._send(status, headers, data[:65536], length=size)
            self.close_connection = True
            return
        self._send_body(status, headers, data, fault)

    def _send_body(self, status: int, headers: dict[str, str | None], data: bytes, fault: str | None) -> None:
        if fault == "cut":
            self._send(status, headers, data[: random.randrange(len(data) + 1) - 1], length=len(data))
            self.close_connection = True
        elif fault == "stall-body":
            self._send(status, headers, data[: len(data) // 2], length=len(data))
            time.sleep(self.server.owner.stall_seconds)
            self.close_connection = True
        elif fault == "slow":
            self._send(status, headers, b"", length=len(data))
            for start in range(0, len(data), 1024):
                self.wfile.write(data[start : start + 1024])
                self.server.owner.sent += 1024
                time.sleep(0.1)
        else:
            self._send(status, headers, data)
            if fault == "refused-keepalive":
                # The connection is gone although nothing said so: the next request on it finds out.
                self.close_connection = True

    def _send(self, status: int, headers: dict[str, str | None], data: bytes, length: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        self.wfile.write(data)
        self.server.owner.sent += len(data)

    def _refuse(self, status: int, code: str, headers: dict[str, str | None] | None = None) -> None:
        body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>no</Message></Error>'.encode()
        self._send(
            status, {"Content-Type": "application/xml", **(headers or {})}, b"" if self.command == "HEAD" else body
        )

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.connection.close()
        self.close_connection = True
        # The base flushes what is left.
        self.wfile = io.BytesIO()

    def _request(self) -> Request:
        match = _RANGE.fullmatch(self.headers.get("Range", ""))
        wanted = (int(match[1]), int(match[2] or 1 << 62)) if match else None
        return Request(self.command, self.path, wanted, {name.lower(): value for name, value in self.headers.items()})
