"""A relay in front of a server that adds latency to every request, and counts requests and bytes.

Bodies pass through the kernel alone (splice), so that what is measured is client and server, and not the relay. Bytes
are handed on unchanged, `Host` included, so that signatures hold.
"""

import contextlib
import os
import re
import socket
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

HEAD_SIZE = 64 << 10
"""Bytes of a request's head at most; bodies of requests are not for this relay."""
PIPE_SIZE = 1 << 20

_REQUEST = re.compile(rb"(GET|HEAD) ")
_PROBE = re.compile(rb"\r\nrange: *bytes=0-0\r\n", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Passed:
    """What went through: all requests, those that are for more than one byte of an object, and the bytes of all
    answers, heads included.
    """

    requests: int
    data_requests: int
    received: int


class Relay:
    """Listens on the loopback interface while it is entered. `latency` is in seconds for each request."""

    def __init__(self, endpoint: str) -> None:
        parts = urlsplit(endpoint)
        self._target = (parts.hostname or "", parts.port or 80)
        self.latency = 0.0
        self._lock = threading.Lock()
        self._passed = Passed(0, 0, 0)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._open: set[socket.socket] = set()

    @property
    def endpoint(self) -> str:
        """The relay's own URL."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def take(self) -> Passed:
        """Return what has passed since the last call."""
        with self._lock:
            passed, self._passed = self._passed, Passed(0, 0, 0)
        return passed

    def _count(self, *, requests: int = 0, data_requests: int = 0, received: int = 0) -> None:
        with self._lock:
            passed = self._passed
            self._passed = Passed(
                passed.requests + requests, passed.data_requests + data_requests, passed.received + received
            )

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                for one in (client, server):
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with self._lock:
                    self._open |= {client, server}
                threading.Thread(target=self._serve, args=(client, server), daemon=True).start()

    def _serve(self, client: socket.socket, server: socket.socket) -> None:
        answers = threading.Thread(target=self._answers, args=(server, client), daemon=True)
        answers.start()
        with contextlib.suppress(OSError):
            self._requests(client, server)
        # A client that closes its side wants no more; neither is the server asked to go on.
        for one in (client, server):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        answers.join()
        with self._lock:
            self._open -= {client, server}
        client.close()
        server.close()

    def _requests(self, client: socket.socket, server: socket.socket) -> None:
        while head := client.recv(HEAD_SIZE):
            if _REQUEST.match(head):
                while b"\r\n\r\n" not in head and (more := client.recv(HEAD_SIZE)):
                    head += more
                is_data = head.startswith(b"GET") and not _PROBE.search(head)
                self._count(requests=1, data_requests=int(is_data))
                time.sleep(self.latency)
            server.sendall(head)

    def _answers(self, server: socket.socket, client: socket.socket) -> None:
        out, into = os.pipe()
        try:
            with contextlib.suppress(OSError):
                while moved := os.splice(server.fileno(), into, PIPE_SIZE, flags=os.SPLICE_F_MOVE):
                    self._count(received=moved)
                    while moved:
                        moved -= os.splice(out, client.fileno(), moved, flags=os.SPLICE_F_MOVE | os.SPLICE_F_MORE)
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_WR)
        finally:
            os.close(out)
            os.close(into)
