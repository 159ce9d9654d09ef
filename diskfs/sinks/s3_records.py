"""Notes of the multipart uploads that this user has begun, so that none of a killed run stays on the server.

A server lists unfinished uploads without anything that tells whose they are. So each is noted in a small file before it
is begun; the file is locked (flock) as long as its writer lives and is removed with the upload. A file that nobody
locks is of a run that was killed. docs/decisions/0016-s3-upload.md says why. Nothing in it is secret.
"""

import contextlib
import fcntl
import hashlib
import json
import math
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_NAME = re.compile(r"[0-9a-f]{32}\.upload")
_MAX_SIZE = 1 << 20


@dataclass(slots=True)
class Record:
    """One noted upload. `known` are the unfinished uploads of the key before it was begun, None if they could not be
    listed; `began` and `ended` are the server's time, in seconds since 1970, between which it was begun, 0 if unknown.

    `upload_id` is empty until the server has told it.
    """

    endpoint: str
    bucket: str
    key: str
    known: list[str] | None = None
    began: float = 0.0
    ended: float = 0.0
    upload_id: str = ""
    path: Path | None = field(default=None, compare=False)
    descriptor: int = field(default=-1, compare=False)

    def note(self, folder: Path, token: str) -> None:
        """Write it down and lock it; without a folder that can be written, the upload goes on unnoted."""
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = folder / f"{token}.upload"
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            self.path, self.descriptor = path, descriptor
            # Another run may just be looking at it; it finds nothing, and goes on.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            self._append(
                {"endpoint": self.endpoint, "bucket": self.bucket, "key": self.key, "known": self.known,
                 "began": self.began}
            )  # fmt: skip

    def note_id(self, upload_id: str) -> None:
        """Write down what the server calls the upload."""
        self.upload_id = upload_id
        with contextlib.suppress(OSError):
            self._append({"upload_id": upload_id})

    def _append(self, fields: dict[str, object]) -> None:
        if self.descriptor >= 0:
            os.write(self.descriptor, json.dumps(fields).encode() + b"\n")
            os.fsync(self.descriptor)

    def forget(self) -> None:
        """Remove the note: nothing is left on the server."""
        if self.path is not None:
            with contextlib.suppress(OSError):
                self.path.unlink()
        self.release()

    def release(self) -> None:
        """Leave the note to the next run."""
        descriptor, self.descriptor = self.descriptor, -1
        self.path = None
        if descriptor >= 0:
            os.close(descriptor)


def state_folder() -> Path:
    """Return where the notes are."""
    state = os.environ.get("XDG_STATE_HOME", "")
    base = Path(state) if os.path.isabs(state) else Path(os.path.expanduser("~/.local/state"))  # noqa: PTH111, PTH117
    return base / "diskfs" / "uploads"


def endpoint_digest(endpoint: str) -> str:
    """Return what stands for a service in a note: its URL may hold a password."""
    return hashlib.sha256(endpoint.encode()).hexdigest()[:32]


def left_behind(folder: Path, endpoint: str, bucket: str) -> Iterator[Record]:
    """Yield the notes of killed runs about a bucket, locked, so that no other run takes them up meanwhile.

    Whoever takes one calls `forget` or `release`.
    """
    for path in _notes(folder):
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            record = None
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Its writer may have removed it while we waited for nothing.
                if os.fstat(descriptor).st_nlink:
                    record = _read(path, descriptor)
            finally:
                if record is None:
                    os.close(descriptor)
            if record is None:
                continue
            if (record.endpoint, record.bucket) == (endpoint, bucket):
                yield record
            else:
                record.release()


def ids_of_others(folder: Path, own: Record) -> set[str]:
    """Return the uploads that other runs, living or not, have noted."""
    found = set()
    for path in _notes(folder):
        if path == own.path:
            continue
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                record = _read(path, descriptor)
            finally:
                os.close(descriptor)
            if record is not None and record.upload_id:
                found.add(record.upload_id)
    return found


def _notes(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]
    except OSError:
        return []


def _read(path: Path, descriptor: int) -> Record | None:
    """Return what a note says; None if it was cut before its first line was whole, when nothing had been begun."""
    fields: dict[str, object] = {}
    for line in os.pread(descriptor, _MAX_SIZE, 0).split(b"\n"):
        # Whoever may write here may have nested a thousand brackets.
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(line)
            if isinstance(found, dict):
                fields.update(found)
    endpoint, bucket, key, known = (fields.get(name) for name in ("endpoint", "bucket", "key", "known"))
    began, upload_id = fields.get("began"), fields.get("upload_id")
    if not (isinstance(endpoint, str) and isinstance(bucket, str) and isinstance(key, str) and _is_utf8(key)):
        if time.time() - os.fstat(descriptor).st_mtime > 60:
            with contextlib.suppress(OSError):
                path.unlink()
        return None
    return Record(
        endpoint,
        bucket,
        key,
        [str(name) for name in known] if isinstance(known, list) else None,
        began if isinstance(began, float) and math.isfinite(began) else 0.0,
        upload_id=upload_id if isinstance(upload_id, str) and _is_utf8(upload_id) else "",
        path=path,
        descriptor=descriptor,
    )


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
