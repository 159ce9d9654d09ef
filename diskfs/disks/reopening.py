"""From the folder of an overlay back to its disks: the source is opened again, and the changes are put over it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from diskfs.disks.opening import OpenedSource, open_source
from diskfs.disks.overlay import MergedDisk, OverlayFolder
from diskfs.errors import AccessDenied, OtherSource, SourceNotFound
from diskfs.sources.locations import RemoteOptions
from diskfs_formats.text import printable


@dataclass(frozen=True, slots=True)
class ReopenedOverlay:
    """An overlay and its source; the disks of `source` are those with the changes."""

    source: OpenedSource
    overlay: OverlayFolder


@contextmanager
def reopened(
    folder: Path, *, location: str | None = None, remote: RemoteOptions | None = None
) -> Iterator[ReopenedOverlay]:
    """Open an overlay that is there, and its source, for this process alone.

    The source is where it was when the overlay was made, or at `location`; it must be the same version of the same
    image in either case. What `remote` says goes before what is stored of how it is reached. A description that
    others may have written is refused. Raises DiskfsError.
    """
    description = OverlayFolder.inspect(folder, require_own=True)
    how = description.options
    stored = how.remote()
    try:
        source = open_source(
            location or description.location,
            format_name=how.format_name,
            parents=how.parents,
            allow_missing_parent=how.allow_missing_parent,
            remote=merged(stored, remote) if remote is not None else stored,
        )
    except (SourceNotFound, AccessDenied) as error:
        if location is not None:
            raise
        raise type(error)(
            f"{error}; it is the source of the overlay {printable(str(folder))}: say with --source where it is now, "
            "and for a signed URL the URL with its signature"
        ) from error
    with source, OverlayFolder.open(folder, source, create=False) as overlay:
        for disk in source.disks:
            if disk.opened is not None:
                disk.replace(MergedDisk(overlay.disk(disk.index)))
        yield ReopenedOverlay(source, overlay)


def merged(stored: RemoteOptions, given: RemoteOptions) -> RemoteOptions:
    """Return what is stored of how a source is reached, with what the user says now in its place."""
    return replace(
        given,
        endpoint_url=given.endpoint_url or stored.endpoint_url,
        region=given.region or stored.region,
        profile=given.profile or stored.profile,
        sign=given.sign and stored.sign,
        requester_pays=given.requester_pays or stored.requester_pays,
        spool=given.spool or stored.spool,
        allow_private=given.allow_private or stored.allow_private,
    )


def require_outside(folder: Path, target: Path) -> None:
    """Raise OtherSource if a target lies in the folder of the overlay that is read."""
    # A link that is replaced lies there; one that is followed ends there. Links in a circle are no error here.
    places = (os.path.realpath(target.absolute().parent), os.path.dirname(os.path.realpath(target)))  # noqa: PTH120
    if os.path.realpath(folder) in places:
        raise OtherSource(
            f"{printable(str(target))}: it would lie among the files of the overlay; choose another place"
        )
