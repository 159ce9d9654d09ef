"""The errors of sources, mounts and commands; those of images are in `diskfs_formats.errors`.

DiskfsError
  SourceError           reading failed for good; what can be retried was retried
    SourceNotFound      there is no such file
    AccessDenied        it may not be read
    SourceChanged       it is no longer the version that was opened
  SinkError             writing failed; the target is what it was before, or absent
    OutOfSpace          there is no room for it
    ReaderGone          whoever read the pipe has closed it
  MountError            the mount could not be set up or taken down
"""

from diskfs_formats.errors import DiskfsError


class SourceError(DiskfsError):
    """Reading failed for good; what can be retried was retried."""


class SourceNotFound(SourceError):
    """There is no such file."""


class AccessDenied(SourceError):
    """The file may not be read."""


class SourceChanged(SourceError):
    """The source is no longer the version that was opened."""


class SinkError(DiskfsError):
    """Writing failed, or the target may not be written."""


class OutOfSpace(SinkError):
    """There is no room: the file system is full, the quota is used up, or the device is too small."""


class ReaderGone(SinkError):
    """Whoever read the pipe has closed it."""


class MountError(DiskfsError):
    """The mount could not be set up or taken down."""
