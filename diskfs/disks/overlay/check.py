"""The examination behind `diskfs overlay-check`: every structure of an overlay, without the source."""

from collections.abc import Iterator

from diskfs.disks.overlay.storage import Storage
from diskfs_formats.findings import Finding


def check_folder(storage: Storage, name: str) -> Iterator[Finding]:
    """Yield the damage; see OverlayFolder.check."""
    raise NotImplementedError
