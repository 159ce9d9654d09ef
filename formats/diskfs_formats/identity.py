"""The identifiers and times that written images carry: fresh ones, or for reproducible output always the same."""

import hashlib
import os
import time
from uuid import UUID

from diskfs_formats.writer import WriteOptions


def new_identifier(options: WriteOptions, *about: object) -> bytes:
    """Return 16 bytes: random, or if the output is to be reproducible, derived from `about` alone."""
    if options.reproducible:
        return hashlib.sha256("\0".join(map(str, ("diskfs", *about))).encode()).digest()[:16]
    return os.urandom(16)


def new_uuid(options: WriteOptions, *about: object) -> UUID:
    """Return such an identifier as a UUID, which says of itself that it is random."""
    return UUID(bytes=new_identifier(options, *about), version=4)


def creation_time(options: WriteOptions) -> int | None:
    """Return the seconds since 1970 to write into images, None if the output is to be reproducible."""
    return None if options.reproducible else int(time.time())
