"""`overlay.json`: what an overlay is, which source it belongs to, and how that is opened again.

No credentials are in it: a location is stored as it may be shown, without user, password and signature.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self
from uuid import UUID

from google_crc32c import extend

from diskfs.disks.overlay.identity import SourceIdentity
from diskfs.disks.overlay.layout import BLOCK_SIZES, VERSION
from diskfs.errors import DamagedOverlay, NewerOverlay, NotAnOverlay
from diskfs.sources.locations import RemoteOptions, is_url, shown

FORMAT = "diskfs overlay"
MAX_SIZE = 16 << 20
"""Bytes that are read of a description; one file of a disk takes some 200."""


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """How a source was opened, besides its location: what opening it again needs, and nothing secret."""

    format_name: str | None = None
    parents: tuple[str, ...] = ()
    allow_missing_parent: bool = False
    endpoint_url: str | None = None
    region: str | None = None
    profile: str | None = None
    sign: bool = True
    requester_pays: bool = False
    spool: bool = False
    allow_private: bool = False

    @classmethod
    def of(
        cls,
        *,
        format_name: str | None = None,
        parents: tuple[str, ...] = (),
        allow_missing_parent: bool = False,
        remote: RemoteOptions | None = None,
    ) -> Self:
        """Return what may be stored of the arguments of `open_source`."""
        remote = remote or RemoteOptions()
        return cls(
            format_name,
            tuple(stored_location(parent) for parent in parents),
            allow_missing_parent,
            shown(remote.endpoint_url) if remote.endpoint_url else None,
            remote.region,
            remote.profile,
            remote.sign,
            remote.requester_pays,
            remote.spool,
            remote.allow_private,
        )

    def remote(self) -> RemoteOptions:
        """Return the part that remote sources are opened with."""
        return RemoteOptions(
            endpoint_url=self.endpoint_url,
            region=self.region,
            profile=self.profile,
            sign=self.sign,
            requester_pays=self.requester_pays,
            spool=self.spool,
            allow_private=self.allow_private,
        )


@dataclass(frozen=True, slots=True)
class OverlayDescription:
    """An overlay. `location` is a URL or an absolute path; `block_size` is in bytes."""

    id: UUID
    location: str
    identity: SourceIdentity
    options: SourceOptions = field(default_factory=SourceOptions)
    block_size: int = 4096

    def pack(self) -> bytes:
        """Return the text of the file."""
        document = {
            "format": FORMAT,
            "version": VERSION,
            "id": str(self.id),
            "block_size": self.block_size,
            "location": self.location,
            "options": asdict(self.options),
            "source": self.identity.as_json(),
        }
        return (json.dumps({**document, "crc32c": _checksum(document)}, indent=1) + "\n").encode("ascii")


def stored_location(location: str) -> str:
    """Return a location as it may be stored: a URL without secrets, a path made absolute."""
    return shown(location) if is_url(location) else str(Path(location).absolute())


def parse_description(text: bytes, name: str) -> OverlayDescription:
    """Return what `overlay.json` says; raises NotAnOverlay, NewerOverlay or DamagedOverlay."""
    if len(text) > MAX_SIZE:
        raise DamagedOverlay(f"{name}: it has over {MAX_SIZE} bytes, and the largest description has fewer")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedOverlay(f"{name}: it is no JSON ({error}); it was changed or damaged") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise NotAnOverlay(f"{name}: it does not say that its format is {FORMAT!r}: the folder holds something else")
    version = document.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise DamagedOverlay(f"{name}: its version is {str(version)[:40]!r}, expected a number from 1")
    if version > VERSION:
        raise NewerOverlay(f"{name}: it has version {version}, and this diskfs reads up to {VERSION}; use a later one")
    stated = document.pop("crc32c", None)
    if stated != (computed := _checksum(document)):
        raise DamagedOverlay(f"{name}: CRC-32C {str(stated)[:40]}, expected {computed}; it was changed or damaged")
    try:
        return _parsed(document)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedOverlay(f"{name}: a member is missing or of another type: {error}") from error


def _parsed(document: Mapping[str, Any]) -> OverlayDescription:
    options = dict(document["options"])
    if isinstance(options["parents"], list):
        options["parents"] = tuple(options["parents"])
    if set(options) != {item.name for item in fields(SourceOptions)} or not isinstance(document["location"], str):
        raise ValueError("the options or the location")
    if not all(_is_of_type(name, value) for name, value in options.items()):
        raise TypeError("an option of the source")
    if type(document["block_size"]) is not int or document["block_size"] not in BLOCK_SIZES:
        raise ValueError("the block size")
    return OverlayDescription(
        UUID(document["id"]),
        document["location"],
        SourceIdentity.from_json(document["source"]),
        SourceOptions(**options),
        document["block_size"],
    )


def _is_of_type(name: str, value: object) -> bool:
    if name == "parents":
        return isinstance(value, tuple) and all(isinstance(parent, str) for parent in value)
    if isinstance(getattr(SourceOptions(), name), bool):
        return isinstance(value, bool)
    return value is None or isinstance(value, str)


def _checksum(document: Mapping[str, Any]) -> str:
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return f"{extend(0, canonical.encode('ascii')):08x}"
