"""The error of everything that reads what is inside a disk.

DiskfsError
  GuestError            a file system of the guest is damaged, uses what is not read, or took too much to read
    LinkError           symbolic links lead in a circle or too far, which the guest's own kernel refuses as well
"""

from diskfs_formats.errors import DiskfsError


class GuestError(DiskfsError):
    """A volume, a file system or a file inside a disk cannot be read; the text names the volume and the reason."""


class LinkError(GuestError):
    """The symbolic links on the way to a file lead nowhere."""
