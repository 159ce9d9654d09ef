"""What a user typed for a source: a path or a URL, and how it may be shown.

A signed URL carries its permission in the query string, and any URL may carry a password before the host. Both are left
out of whatever is printed, logged or stored.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
DEFAULT_DEADLINE = 60.0
"""Seconds after which a read that makes no progress fails; a shorter outage goes unnoticed."""
DEFAULT_CACHE_SIZE = 10 << 30
"""Bytes that the folder of `--cache` may take."""


class Location(str):
    """A source as it may be shown; `full` is what is opened. For a path, and a URL without secrets, they are equal."""

    __slots__ = ("full",)
    full: str

    def __new__(cls, full: str) -> Self:
        location = super().__new__(cls, shown(full))
        location.full = full
        return location


@dataclass(frozen=True, slots=True)
class RemoteOptions:
    """How sources behind S3 and URLs are reached; nothing of it matters for a path.

    `deadline` is in seconds, `cache_size` in bytes of `cache_folder`.
    """

    endpoint_url: str | None = None
    region: str | None = None
    profile: str | None = None
    sign: bool = True
    requester_pays: bool = False
    spool: bool = False
    allow_private: bool = False
    cache_folder: Path | None = None
    cache_size: int = DEFAULT_CACHE_SIZE
    deadline: float = DEFAULT_DEADLINE


def is_url(location: str) -> bool:
    """Tell whether a location has a scheme, as opposed to a path."""
    return SCHEME.match(location) is not None


def full(location: str) -> str:
    """Return what is to be opened."""
    return location.full if isinstance(location, Location) else location


def shown(location: str) -> str:
    """Return a location without user, password, query and fragment; a path as it is, and `versionId` is no secret."""
    match = SCHEME.match(location)
    if match is None:
        return location
    place, _, query = location.partition("#")[0].partition("?")
    authority, slash, path = place[match.end() :].partition("/")
    version = re.search(r"(?:^|&)(versionId=[^&#]*)", query) if match[1].lower() == "s3" else None
    return f"{match[0]}{authority.rpartition('@')[2]}{slash}{path}" + (f"?{version[1]}" if version else "")


def file_name(location: str) -> str:
    """Return the last component of a path or URL, as a file would be called."""
    if not is_url(location):
        return Path(location).name
    from urllib.parse import unquote, urlsplit  # noqa: PLC0415 - slow to load, and paths need none of it

    place = SCHEME.sub("", location.partition("#")[0].partition("?")[0])
    name = place.rpartition("/")[2] if "/" in place else ""
    # The key of an object is taken as it is; only a URL has escapes.
    return name if urlsplit(location).scheme.lower() == "s3" else unquote(name)
