"""The parent's end of the child that reads file systems (`diskfs.guest.serving`).

The child gets bytes of the disks and nothing else: locations and credentials stay here. A child that crashes, hangs
or takes too much memory becomes a GuestError that names the volume, and the next request about another volume starts
a new one. See docs/decisions/0019-reading-guest-file-systems.md.
"""

import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diskfs
import diskfs_formats
from diskfs.guest import messages
from diskfs.guest.errors import GuestError
from diskfs_formats.errors import DiskfsError
from diskfs_formats.source import ByteSource
from diskfs_formats.text import printable

TIME_LIMIT = 60.0
"""Seconds that reading all volumes of a source may take, without those in which the child waits for bytes."""

REQUEST_TIME_LIMIT = 20.0
"""Seconds of the same kind that one request may take."""

WAITING_LIMIT = 60.0
"""Seconds that one request may take, with those in which the child waits for bytes."""

FETCH_LIMIT = 256 << 20
"""Bytes of the disks that one request may ask for; counting what is free on 2 TiB of NTFS takes 64 MiB."""

START_TIME_LIMIT = 60.0
"""Seconds until a new child is ready; it takes 0.2 s on a machine that is not overloaded."""

_PROGRAM = "import sys; sys.path[:0] = sys.argv[4:]; from diskfs.guest.serving import serve; \
serve(int(sys.argv[1]), [int(size) for size in sys.argv[2].split(',')], int(sys.argv[3]))"


class ReadingChild:
    """A child process over some disks, started when it is first asked. Calls of several threads wait for each other."""

    def __init__(
        self,
        disks: Sequence[ByteSource],
        *,
        time_limit: float = TIME_LIMIT,
        request_time_limit: float = REQUEST_TIME_LIMIT,
    ) -> None:
        self._disks = tuple(disks)
        self._time_left = time_limit
        self._time_limit = time_limit
        self._request_time_limit = request_time_limit
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._closed = False
        self.starts = 0
        """How many children were started; what one had opened, the next has not."""

    def request(
        self, about: str, message: dict[str, Any], opening: tuple[int, dict[str, Any]] | None = None
    ) -> tuple[dict[str, Any], bytes, int]:
        """Send a request and return the answer, its bytes and which child gave it.

        `about` names the volume for messages. `opening` is the child that has done what the request needs, and the
        message to send first if that is no longer the one. Raises GuestError, or what a disk raises for its bytes.
        """
        with self._lock:
            if self._closed:
                raise GuestError(f"{about}: the source is closed")
            self._start()
            try:
                if opening is not None and opening[0] != self.starts:
                    self._exchange(about, opening[1])
                answer, data = self._exchange(about, message)
            except (GuestError, DiskfsError):
                raise
            except BaseException:
                self._end()  # interrupted in the middle of an exchange
                raise
            return answer, data, self.starts

    def close(self) -> None:
        """End the child. Closing twice is harmless."""
        with self._lock:
            self._closed = True
            self._end()

    @property
    def pid(self) -> int | None:
        """The child's process id, None if none is running."""
        return self._process.pid if self._process else None

    def _start(self) -> None:
        if self._time_left <= 0:
            raise GuestError(
                f"the {self._time_limit:g} s that may be spent on reading the file systems of one source are used up"
            )
        if self._process is not None:
            return
        ours, theirs = socket.socketpair()
        # The same modules as here, however they were found.
        roots = [str(Path(package.__path__[0]).resolve().parent) for package in (diskfs, diskfs_formats)]
        roots += [entry for entry in sys.path if Path(entry).is_absolute()]
        command = [sys.executable, "-I", "-c", _PROGRAM, str(theirs.fileno())]
        command += [",".join(str(disk.size) for disk in self._disks), str(int(self._time_limit) + 1), *roots]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={"LC_ALL": "C.UTF-8"},
                cwd="/",
            )
        except OSError as error:
            ours.close()
            raise GuestError(f"the process that reads file systems cannot be started: {error}") from error
        finally:
            theirs.close()
        self._connection = ours
        self.starts += 1
        try:
            messages.receive(ours, START_TIME_LIMIT)
        except (messages.ConnectionEnded, TimeoutError) as error:
            how = self._end()
            raise GuestError(f"the process that reads file systems does not start ({how})") from error

    def _exchange(self, about: str, message: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        connection = self._connection
        if connection is None:
            raise GuestError(f"{about}: the process that reads file systems has ended")
        failed: DiskfsError | None = None
        left = min(self._request_time_limit, self._time_left)
        fetched = 0
        end = time.monotonic() + WAITING_LIMIT
        try:
            connection.settimeout(max(left, 0.001))
            messages.send(connection, message)
            while True:
                began = time.monotonic()
                try:
                    answer, data = messages.receive(connection, left)
                finally:
                    spent = time.monotonic() - began
                    left -= spent
                    self._time_left -= spent
                if "read" not in answer:
                    break
                if left <= 0 or time.monotonic() > end or fetched > FETCH_LIMIT:
                    raise TimeoutError
                try:
                    wanted = self._wanted(answer["read"])
                except DiskfsError as error:
                    failed = failed or error
                    messages.send(connection, {"error": True})
                else:
                    fetched += len(wanted)
                    messages.send(connection, {}, wanted)
        except TimeoutError:
            self._end()
            raise GuestError(
                f"{about}: reading it was given up after {self._request_time_limit:g} s of work, "
                f"{WAITING_LIMIT:g} s in all or {FETCH_LIMIT >> 20} MiB; the file system is damaged, or made to be "
                "read without end"
            ) from None
        except messages.ConnectionEnded:
            raise GuestError(
                f"{about}: the process that reads it ended ({self._end()}); the file system is damaged, or made to "
                "do so"
            ) from None
        if "error" in answer:
            raise failed or GuestError(f"{about}: {printable(str(answer['error']))}")
        return answer, data

    def _wanted(self, place: Any) -> bytes:
        """Read what the child asks for, which may be anything."""
        if not isinstance(place, list) or len(place) != 3 or not all(type(value) is int for value in place):
            raise messages.ConnectionEnded("a request that is none")
        index, offset, length = place
        if not (0 <= index < len(self._disks) and 0 <= length <= messages.MAX_BYTES):
            raise messages.ConnectionEnded("a request for bytes that nobody has")
        return self._disks[index].read_at(offset, length)

    def _end(self) -> str:
        """End the child and return how it ended."""
        process, connection = self._process, self._connection
        self._process = self._connection = None
        if connection is not None:
            connection.close()
        if process is None:
            return "not started"
        try:
            # One that crashed is about to be gone; one that waits sees the closed connection.
            status = process.wait(0.5 if connection is not None else 0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return "killed"
        if status < 0:
            with contextlib.suppress(ValueError):
                return f"signal {-status}, {signal.Signals(-status).name}"
            return f"signal {-status}"
        return f"exit status {status}"
