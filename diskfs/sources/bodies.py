"""The bodies of urllib3's answers, read as they arrive."""

import http.client
import io
from typing import Any

from urllib3.exceptions import HTTPError, ReadTimeoutError

from diskfs.retrying import Transient


def read_body(response: Any, length: int) -> bytes:
    """Return what has arrived of a body, at most `length` bytes, at least one but at the end; raises Transient."""
    try:
        data: bytes = response.read1(length)
    except ReadTimeoutError as error:
        raise Transient("the server stopped sending") from error
    except (HTTPError, http.client.HTTPException, OSError) as error:
        raise Transient(f"the connection broke while the body came ({type(error).__name__})") from error
    return data


def read_body_into(response: Any, room: memoryview) -> int:
    """Put what has arrived into `room`, not copied on the way; return how many bytes, 0 at the end; raises Transient.

    That is so for all but the last byte, which has to come by the library's own way: it then knows that the connection
    is free. A body of unknown length, or a library that keeps its file elsewhere, costs a copy.
    """
    answer: Any = getattr(response, "_fp", None)
    file = getattr(answer, "fp", None)
    left = getattr(response, "length_remaining", None)
    if not isinstance(file, io.BufferedReader) or left is None or left <= 1 or getattr(answer, "length", None) != left:
        data = read_body(response, len(room))
        room[: len(data)] = data
        return len(data)
    try:
        # One call of recv at most: whoever reads must see how slowly bytes come.
        count = file.readinto1(room[: left - 1])
    except TimeoutError as error:
        raise Transient("the server stopped sending") from error
    except (ValueError, OSError) as error:
        raise Transient(f"the connection broke while the body came ({type(error).__name__})") from error
    answer.length -= count
    response.length_remaining -= count
    return count


def close_body(response: Any) -> None:
    """Give the connection back if nothing of the body is left; else it is of no further use."""
    if getattr(response, "length_remaining", None) == 0:
        response.release_conn()
    else:
        response.close()
