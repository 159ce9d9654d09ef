"""Changes of a disk in a folder beside it: the disk below is never modified.

The layout is described in docs/OVERLAY.md, the reasons for it in docs/decisions/0017-overlay-store.md.
"""

from diskfs.disks.overlay.description import OverlayDescription, SourceOptions
from diskfs.disks.overlay.disk import OverlayDisk
from diskfs.disks.overlay.folder import OverlayFolder
from diskfs.disks.overlay.identity import SourceIdentity
from diskfs.disks.overlay.merged import MergedDisk

__all__ = ["MergedDisk", "OverlayDescription", "OverlayDisk", "OverlayFolder", "SourceIdentity", "SourceOptions"]
