"""A proxy in front of an S3 server that fails on demand, before or after the server has done what it was asked.

It hands on what it gets unchanged, Host included, so that signatures hold. It counts requests and faults itself.
"""

import contextlib
import http.client
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, urlsplit

from tests.servers.faults import planned

FAULTS = ("503", "500", "429", "timeout-400", "reset", "cut", "garbled", "lost", "500-after", "cut-answer")
"""`lost`, `500-after` and `cut-answer` fail when the server has done its work; the others before it gets the request.

`garbled` changes a byte of the body, `cut` closes the connection in the middle of it.
"""

_OF_BODIES = frozenset({"timeout-400", "cut", "garbled"})
"""Faults of requests that carry data; others meet a 503 instead."""


@dataclass(frozen=True)
class ProxiedRequest:
    """One line of the proxy's log. `operation` is S3's name for it."""

    operation: str
    path: str
    length: int
    fault: str | None


class FaultyProxy:
    """Passes on requests to `endpoint`. `choose` picks a fault, or None, for each; it is called under a lock."""

    def __init__(self, endpoint: str) -> None:
        parts = urlsplit(endpoint)
        self.target = (parts.hostname or "", parts.port or 80)
        self.released = threading.Event()
        self.reset()
        self._lock = threading.Lock()
        self._server = _Threaded(("127.0.0.1", 0), _Handler)
        self._server.owner = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def reset(self) -> None:
        """Forget everything, and fail no more."""
        self.released.set()
        self.log: list[ProxiedRequest] = []
        self.choose: Callable[[str], str | None] = lambda operation: None
        self.denied: Callable[[str], tuple[int, str] | None] = lambda operation: None
        self.latency = 0.0
        self.pause_in_body = 0.0
        """Seconds for which nothing is read of a body after its first bytes."""
        self.hold_answer: Callable[[str], bool] = lambda operation: False
        """Operations that the server does, and whose answer is kept back until `released` is set."""
        self.held = threading.Event()
        self.released = threading.Event()
        self.down = False

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def endpoint(self) -> str:
        """The proxy's own URL."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def fail(self, rate: float, kinds: tuple[str, ...] = FAULTS, seed: int = 1) -> None:
        """Make a share of all requests fail, each kind as often as any other."""
        faults = planned(rate, kinds, seed)
        self.choose = lambda operation: next(faults)

    def counted(self) -> Counter[str]:
        """Return how many requests met which fault; "" for those that met none."""
        with self._lock:
            return Counter(request.fault or "" for request in self.log)

    def operations(self) -> Counter[str]:
        """Return how many requests there were of each operation."""
        with self._lock:
            return Counter(request.operation for request in self.log)

    def note(self, operation: str, path: str, length: int) -> str | None:
        """Enter a request in the log, and return its fault."""
        with self._lock:
            fault = self.choose(operation)
            if fault in _OF_BODIES and operation not in {"UploadPart", "PutObject"}:
                fault = "503"
            self.log.append(ProxiedRequest(operation, path, length, fault))
            return fault


class _Threaded(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    owner: FaultyProxy

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that are killed close their connections; that is no error here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Threaded

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """The log is a list."""

    def handle_expect_100(self) -> bool:
        # The body is asked for in _handle, where a fault may come first.
        return True

    def _handle(self) -> None:
        owner = self.server.owner
        operation = _operation(self.command, self.path)
        length = int(self.headers.get("Content-Length", "0"))
        fault = owner.note(operation, self.path, length)
        if owner.down or fault == "reset":
            self._close()
            return
        if owner.latency:
            time.sleep(owner.latency)
        if self.headers.get("Expect"):
            self.send_response_only(100)
            self.end_headers()
        body = self._body(length, fault)
        if body is None:
            self._close()
        elif denied := owner.denied(operation):
            self._refuse(*denied)
        elif refusal := {"503": "SlowDown", "500": "InternalError", "429": "TooManyRequests"}.get(fault or ""):
            self._refuse(int(fault or 0), refusal)
        elif fault == "timeout-400":
            self._refuse(400, "RequestTimeout")
        else:
            self._forward(operation, body, fault)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle  # noqa: N815 - the base's names

    def _body(self, length: int, fault: str | None) -> bytes | None:
        if fault == "cut":
            self.rfile.read(length // 2)
            return None
        first = self.rfile.read(min(length, 1 << 16))
        if self.server.owner.pause_in_body and length > len(first):
            time.sleep(self.server.owner.pause_in_body)
        body = first + self.rfile.read(length - len(first))
        if fault == "garbled" and body:
            body = body[:-1] + bytes([body[-1] ^ 1])
        return body if len(body) == length else None

    def _forward(self, operation: str, body: bytes, fault: str | None) -> None:
        owner = self.server.owner
        connection = http.client.HTTPConnection(*owner.target, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in {"expect", "connection"}:
                    connection.putheader(name, value)
            connection.endheaders(body)
            response = connection.getresponse()
            data = response.read()
        finally:
            connection.close()
        if owner.hold_answer(operation):
            owner.held.set()
            owner.released.wait(60)
        if fault == "lost":
            self._close()
        elif fault == "500-after":
            self._refuse(500, "InternalError")
        elif fault == "cut-answer":
            self.wfile.write(b"HTTP/1.1 200 O")
            self._close()
        else:
            self.send_response_only(response.status)
            for name, value in response.getheaders():
                if name.lower() not in {"transfer-encoding", "connection", "content-length"}:
                    self.send_header(name, value)
            size = response.headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(data))
            self.send_header("Content-Length", size)
            self.end_headers()
            self.wfile.write(data)

    def _refuse(self, status: int, code: str) -> None:
        body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>no CANARY</Message></Error>'.encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _close(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)


def _operation(method: str, path: str) -> str:
    query = parse_qs(urlsplit(path).query, keep_blank_values=True)
    if "uploads" in query:
        return "CreateMultipartUpload" if method == "POST" else "ListMultipartUploads"
    if "uploadId" in query:
        names = {
            "PUT": "UploadPart",
            "POST": "CompleteMultipartUpload",
            "DELETE": "AbortMultipartUpload",
            "GET": "ListParts",
        }
        return names.get(method, method)
    return {"PUT": "PutObject", "HEAD": "HeadObject", "GET": "GetObject", "DELETE": "DeleteObject"}.get(method, method)
