"""A proxy for HTTP (RFC 9110, 9112): whole URLs are passed on, CONNECT opens a tunnel.

It resolves names by itself, by the table that a test gives it, and keeps a log of what it was asked for.
"""

import base64
import contextlib
import http.client
import selectors
import socket
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

_PATIENCE = 30.0
"""Seconds of silence after which a connection is dropped."""


@dataclass(frozen=True)
class Asked:
    """One line of the proxy's log: a method and the request's target, as they came."""

    method: str
    target: str
    headers: dict[str, str] = field(repr=False)


class ForwardProxy:
    """Passes on what it is asked for. `names` maps hosts to those that they are on; others are taken as they are.

    With `credentials`, user and password, it refuses whoever does not send them; `refusal` is a status that it answers
    everything with. It speaks TLS with `tls`.
    """

    def __init__(self, names: Mapping[str, str] | None = None, tls: ssl.SSLContext | None = None) -> None:
        self.names = dict(names or {})
        self.credentials: tuple[str, str] | None = None
        self.refusal: int | None = None
        self.log: list[Asked] = []
        self._tls = tls
        self._server = _Threaded(("127.0.0.1", 0), _Handler)
        self._server.owner = self
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def url(self) -> str:
        """The proxy's own URL."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def refuses(self, asked: Asked) -> int | None:
        """Enter a request in the log; return the status to refuse it with, or None."""
        self.log.append(asked)
        if self.credentials is not None:
            wanted = "Basic " + base64.b64encode(":".join(self.credentials).encode()).decode()
            if asked.headers.get("proxy-authorization") != wanted:
                return 407
        return self.refusal


class _Threaded(ThreadingHTTPServer):
    daemon_threads = True
    owner: ForwardProxy
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients close connections that have become useless; that is no error here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _PATIENCE
    server: _Threaded
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """The log is a list."""

    def do_GET(self) -> None:
        self._pass_on()

    def do_HEAD(self) -> None:
        self._pass_on()

    def _pass_on(self) -> None:
        parts = urlsplit(self.path)
        refused = self._refused()
        if refused is None and (parts.scheme != "http" or not parts.hostname):
            # RFC 9112, section 3.2.2: a proxy is asked for the whole URL.
            refused = 400
        if refused is not None:
            self._answer(refused, {}, b"")
            return
        headers = {name: value for name, value in self.headers.items() if not name.lower().startswith("proxy-")}
        connection = http.client.HTTPConnection(*self._place(parts.hostname or "", parts.port or 80), timeout=_PATIENCE)
        with contextlib.closing(connection):
            connection.request(self.command, parts.path + (f"?{parts.query}" if parts.query else ""), headers=headers)
            answer = connection.getresponse()
            kept = {name: value for name, value in answer.getheaders() if name.lower() not in {"date", "server"}}
            self._answer(answer.status, kept, answer.read())

    def do_CONNECT(self) -> None:
        refused = self._refused()
        if refused is not None:
            self._answer(refused, {}, b"")
            return
        host, _, port = self.path.rpartition(":")
        with socket.create_connection(self._place(host.strip("[]"), int(port)), timeout=_PATIENCE) as there:
            self.send_response(200, "Connection established")
            self.end_headers()
            _relay(self.connection, there)
        self.close_connection = True

    def _place(self, host: str, port: int) -> tuple[str, int]:
        return self.server.owner.names.get(host, host), port

    def _refused(self) -> int | None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        return self.server.owner.refuses(Asked(self.command, self.path, headers))

    def _answer(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _relay(one: socket.socket, other: socket.socket) -> None:
    """Pass on bytes both ways until either end has no more."""
    with selectors.DefaultSelector() as selector:
        selector.register(one, selectors.EVENT_READ, other)
        selector.register(other, selectors.EVENT_READ, one)
        while ready := selector.select(_PATIENCE):
            for key, _ in ready:
                source = key.fileobj
                assert isinstance(source, socket.socket)
                data = source.recv(65536)
                while isinstance(source, ssl.SSLSocket) and source.pending():
                    data += source.recv(source.pending())
                if not data:
                    return
                key.data.sendall(data)
