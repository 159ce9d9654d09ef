"""Messages between diskfs and the child that reads file systems: a length, a JSON object, bytes.

Each is two little-endian 32-bit lengths, a JSON object in ASCII of the first, and bytes of the second. Nothing in a
message is ever executed or unpickled; the side that does not trust the other states how long both may be.
"""

import json
import socket
import struct
import time
from typing import Any

LENGTHS = struct.Struct("<II")

MAX_OBJECT = 64 << 20
"""Bytes of JSON: a folder of 65,536 entries with names of 255 bytes, escaped, is half of it."""

MAX_BYTES = 4 << 20
"""Bytes beside the object."""


class ConnectionEnded(Exception):
    """The other side has closed its end, or sends what is no message."""


def send(connection: socket.socket, message: dict[str, Any], data: bytes = b"") -> None:
    """Send one message; raises ConnectionEnded, or TimeoutError as the socket says."""
    text = json.dumps(message).encode("ascii")
    try:
        connection.sendall(LENGTHS.pack(len(text), len(data)) + text + data)
    except TimeoutError:
        raise
    except OSError as error:
        raise ConnectionEnded(str(error)) from error


def receive(connection: socket.socket, seconds: float | None = None) -> tuple[dict[str, Any], bytes]:
    """Receive one whole message; raises ConnectionEnded, or TimeoutError if it is not there after `seconds`."""
    end = None if seconds is None else time.monotonic() + seconds
    object_length, data_length = LENGTHS.unpack(_exactly(connection, LENGTHS.size, end))
    if object_length > MAX_OBJECT or data_length > MAX_BYTES:
        raise ConnectionEnded(f"a message of {object_length} + {data_length} bytes")
    text, data = _exactly(connection, object_length, end), _exactly(connection, data_length, end)
    try:
        message = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConnectionEnded("a message that is no JSON") from error
    if not isinstance(message, dict):
        raise ConnectionEnded("a message that is no JSON object")
    return message, data


def _exactly(connection: socket.socket, length: int, end: float | None) -> bytes:
    parts = bytearray()
    while len(parts) < length:
        if end is not None:
            connection.settimeout(max(end - time.monotonic(), 0.001))
        try:
            part = connection.recv(min(length - len(parts), 1 << 20))
        except TimeoutError:
            raise
        except OSError as error:
            raise ConnectionEnded(str(error)) from error
        if not part:
            raise ConnectionEnded("the end")
        parts += part
    return bytes(parts)
