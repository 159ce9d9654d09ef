"""The errors of sources, mounts and commands; those of images are in `diskfs_formats.errors`.

DiskfsError
  SourceError           reading failed for good; what can be retried was retried
    SourceNotFound      there is no such file
    AccessDenied        it may not be read
    SourceChanged       it is no longer the version that was opened
  SinkError             writing failed; the target is what it was before, or absent
    OutOfSpace          there is no room for it
    ReaderGone          whoever read the pipe has closed it
  OverlayError          the folder of an overlay cannot be used
    OverlayInUse        another process has it open
    OtherSource         it belongs to another source, or to another version of this one
    NotAnOverlay        the folder holds something else
    NewerOverlay        a later version of diskfs has made it
    DamagedOverlay      a structure contradicts its description
    OverlayWriteError   storing a change has failed; nothing is written until it is opened again
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


class OverlayError(DiskfsError):
    """The folder of an overlay cannot be used."""


class OverlayInUse(OverlayError):
    """Another process, or another place of this one, has the overlay open."""


class OtherSource(OverlayError):
    """The overlay belongs to another source, or to another version of this one."""


class NotAnOverlay(OverlayError):
    """The folder is missing, or holds something else."""


class NewerOverlay(OverlayError):
    """A later version of diskfs has made the overlay."""


class DamagedOverlay(OverlayError):
    """A structure of the overlay contradicts its description."""


class OverlayWriteError(OverlayError):
    """Storing a change has failed; nothing more is written until the overlay is opened again."""


class MountError(DiskfsError):
    """The mount could not be set up or taken down."""
