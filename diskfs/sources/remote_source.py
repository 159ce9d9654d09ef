"""Opening an s3://, http:// or https:// location: probing it, pinning it, and putting the cache in front."""

import calendar
import email.utils
import functools
import os
import stat
import tempfile
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from diskfs.errors import SourceError
from diskfs.retrying import Transient
from diskfs.sources.cache import CachedSource
from diskfs.sources.file import FileSource, open_file
from diskfs.sources.locations import RemoteOptions, shown
from diskfs.sources.remote import IDLE_TIMEOUT, Probed, RemoteObject, Transport, Version, probe
from diskfs.sources.statistics import STATISTICS
from diskfs.sources.stored_cache import StoredCache
from diskfs_formats.errors import ParentUnavailable, UnsupportedFeature
from diskfs_formats.source import Buffer
from diskfs_formats.text import printable

SPOOL_TRIES = 3


class RemoteSource:
    """A remote object as a source, with the objects beside it. Safe to share between threads."""

    def __init__(self, location: str, options: RemoteOptions, content: CachedSource | FileSource, name: str) -> None:
        self._location = location
        self._options = options
        self._content = content
        self._name = name
        self._opened = time.time_ns()
        _OPEN.add(self)

    @property
    def name(self) -> str:
        return self._name

    @property
    def size(self) -> int:
        return self._content.size

    @property
    def location(self) -> str:
        """What was opened, secrets included."""
        return self._location

    @property
    def key(self) -> str:
        """What tells this version of this object from any other."""
        return self._name if isinstance(self._content, FileSource) else self._content.remote.key

    @property
    def version(self) -> Version | None:
        """What the server says of the version; None for an object that was copied whole."""
        return None if isinstance(self._content, FileSource) else self._content.remote.version

    @property
    def status(self) -> os.stat_result:
        """What stands for a file's status: readable by whoever the mount lets in, with the object's own time."""
        if isinstance(self._content, FileSource):
            modified = self._content.status.st_mtime_ns
        else:
            modified = _nanoseconds(self._content.remote.version.modified) or self._opened
        seconds = modified // 10**9
        fields = (stat.S_IFREG | 0o444, 0, 0, 1, os.getuid(), os.getgid(), self.size, seconds, seconds, seconds)
        return os.stat_result(fields, {"st_atime_ns": modified, "st_mtime_ns": modified, "st_ctime_ns": modified})

    def read_at(self, offset: int, length: int, /) -> bytes:
        return self._content.read_at(offset, length)

    def read_ranges(self, ranges: Sequence[tuple[int, int]], /) -> list[bytes]:
        if isinstance(self._content, CachedSource):
            return self._content.read_ranges(ranges)
        return [self._content.read_at(offset, length) for offset, length in ranges]

    def read_if_ready(self, offset: int, length: int, /) -> Buffer | None:
        return self._content.read_if_ready(offset, length)

    def open_beside(self, file_name: str) -> "RemoteSource":
        """Open an object of the same folder or prefix; raises SourceNotFound. `file_name` is a bare name."""
        return open_remote(_beside(self._location, file_name), self._options)

    def close(self) -> None:
        _OPEN.discard(self)
        self._content.close()


_OPEN: "weakref.WeakSet[RemoteSource]" = weakref.WeakSet()


def names_object(bucket: str, key: str) -> str | None:
    """Return the name of an open source that is this object in S3, by an s3:// location or by what looks like its URL;
    None if there is none.
    """
    for source in list(_OPEN):
        # As it was typed, and not as it is shown: a key may have `#`, `?` and control characters in it.
        scheme = source.location.partition("://")[0]
        if scheme.lower() == "s3":
            from diskfs.s3 import parse_place  # noqa: PLC0415 - loaded by then

            is_it = parse_place(source.location, "")[:2] == (bucket, key)
        else:
            authority, _, path = shown(source.location).partition("://")[2].partition("/")
            path = unquote(path)
            is_it = path == f"{bucket}/{key}" or (path == key and authority.startswith(f"{bucket}."))
        if is_it:
            return source.name
    return None


def open_remote(location: str, options: RemoteOptions) -> RemoteSource:
    """Open a URL; raises SourceNotFound, AccessDenied, UnsafeReference, UnsupportedFeature, or SourceError."""
    transport = _transport(location, options)
    try:
        probed = probe(transport, options.deadline)
        content = _content(transport, probed, options)
    except BaseException:
        transport.close()
        raise
    return RemoteSource(location, options, content, transport.name)


def _transport(location: str, options: RemoteOptions) -> Transport:
    if location.partition("://")[0].lower() == "s3":
        # Loaded here: boto3 takes a quarter of a second, and a URL needs none of it.
        from diskfs.sources.s3 import S3Transport  # noqa: PLC0415

        return S3Transport(location, options)
    from diskfs.sources.http import HttpTransport  # noqa: PLC0415

    return HttpTransport(location, options)


def _content(transport: Transport, probed: Probed, options: RemoteOptions) -> CachedSource | FileSource:
    if probed.version is not None:
        return CachedSource(RemoteObject(transport, probed.version, options.deadline), stored=_stored_cache(options))
    if not options.spool:
        raise UnsupportedFeature(
            f"{transport.name}: the server cannot send parts of a file (it ignores Range), so all of it would "
            "have to be read; use --spool to copy it to a temporary file first"
        )
    return _spooled(transport)


def _stored_cache(options: RemoteOptions) -> StoredCache | None:
    return _cache_at(options.cache_folder, options.cache_size) if options.cache_folder is not None else None


@functools.cache
def _cache_at(folder: Path, size: int) -> StoredCache:
    return StoredCache(folder, size)


def _spooled(transport: Transport) -> FileSource:
    """Copy the whole object to a file that has no name, and so is gone with this process."""
    folder = os.environ.get("TMPDIR") or "/var/tmp"  # noqa: S108 - large: /tmp is often in memory
    for tries in range(1, SPOOL_TRIES + 1):
        try:
            with tempfile.TemporaryFile(dir=folder, prefix="diskfs-") as file:
                size = 0
                for data in _whole(transport):
                    file.write(data)
                    size += len(data)
                file.flush()
                source = open_file(Path(f"/proc/self/fd/{file.fileno()}"))
        except Transient as error:
            if tries == SPOOL_TRIES:
                raise SourceError(f"{transport.name}: copying it failed {tries} times: {error}") from error
            STATISTICS.add(retries=1)
        except OSError as error:
            raise SourceError(f"{transport.name}: it cannot be copied to {folder}: {error.strerror}") from error
        else:
            return source
    raise AssertionError


def _whole(transport: Transport) -> Iterator[bytes]:
    STATISTICS.add(requests=1)
    with closing(transport.get(None, None, None, IDLE_TIMEOUT)) as answer:
        if answer.status != 200 or answer.headers.get("content-encoding", "identity") != "identity":
            raise Transient("the answer is not the whole file")
        announced = answer.headers.get("content-length")
        if announced is None and "chunked" not in answer.headers.get("transfer-encoding", "").lower():
            raise SourceError(
                f"{transport.name}: the server does not say how long the file is, so that a copy which was cut could "
                "not be told from a whole one; fetch it by other means and read the copy"
            )
        received = 0
        while data := answer.read(1 << 20):
            received += len(data)
            STATISTICS.add(bytes_fetched=len(data))
            yield data
        if announced is not None and announced != str(received):
            raise Transient(f"{received} bytes came of {announced[:20]}")


def _beside(location: str, file_name: str) -> str:
    """Return the location of a bare name in the same folder or under the same prefix."""
    if location.partition("://")[0].lower() == "s3":
        from diskfs.s3 import parse_place  # noqa: PLC0415

        place = parse_place(location, "")
        prefix, slash, _ = place.key.rpartition("/")
        return f"s3://{place.bucket}/{prefix}{slash}{file_name}"
    parts = urlsplit(location)
    if parts.query:
        raise ParentUnavailable(
            f"{printable(file_name)!r} lies beside a URL with a query string (a signed one?), and what that permits is "
            "one file; use a location without it, or name a parent with --parent"
        )
    folder = parts.path.rpartition("/")[0]
    return urlunsplit((parts.scheme, parts.netloc, f"{folder}/{quote(file_name)}", "", ""))


def _nanoseconds(modified: str | None) -> int:
    parsed = email.utils.parsedate(modified) if modified else None
    try:
        seconds = calendar.timegm(parsed) if parsed else 0
    except (OverflowError, ValueError):
        return 0
    # What fits into 64 bits as nanoseconds; hours and minutes may be any number.
    return seconds * 10**9 if abs(seconds) < 1 << 33 else 0
