"""Which errno a failed request answers. The one place that decides it."""

import errno

from diskfs.errors import AccessDenied, OutOfSpace, SourceChanged, SourceNotFound

_ERRNO_BY_ERROR: tuple[tuple[type[BaseException], int], ...] = (
    (SourceNotFound, errno.ENOENT),
    (AccessDenied, errno.EACCES),
    (SourceChanged, errno.ESTALE),
    (OutOfSpace, errno.ENOSPC),
)


def errno_of(error: BaseException) -> int:
    """Return the errno for an error that reached a FUSE handler: EIO for all that has no better one."""
    for kind, number in _ERRNO_BY_ERROR:
        if isinstance(error, kind):
            return number
    return errno.EIO
