"""The errors a caller can meet.

DiskfsError
  ImageError            the image is at fault
    UnknownFormat       no driver, or more than one, recognises it
    CorruptImage        a structure contradicts its specification
      TruncatedImage    the file ends before the structure or the data does
      ChecksumMismatch  a stored checksum differs from the computed one
    UnsupportedFeature  the image is well-formed and uses something that is not read
    ParentUnavailable   the image needs another file that is missing or does not match
    UnsafeReference     the image names a file that it may not open
  OutOfRange            a caller asked for bytes past the end

Every message names the file, the structure, the offset, what was found, what was expected, and what to do,
as far as each applies: it is shown to users as it is.
"""


class DiskfsError(Exception):
    """The root of everything diskfs raises on purpose; its text is one line for a user."""


class ImageError(DiskfsError):
    """The image is at fault."""


class UnknownFormat(ImageError):
    """No driver recognises the image, or more than one does."""


class CorruptImage(ImageError):
    """A structure contradicts its specification."""


class TruncatedImage(CorruptImage):
    """The file ends before a structure or the data it promises."""


class ChecksumMismatch(CorruptImage):
    """A stored checksum differs from the computed one."""


class UnsupportedFeature(ImageError):
    """The image is well-formed and uses something that is not read."""


class ParentUnavailable(ImageError):
    """The image needs another file that is missing or does not match."""


class UnsafeReference(ImageError):
    """The image names a file that it may not open."""


class OutOfRange(DiskfsError):
    """A caller asked for bytes past the end of a source."""
