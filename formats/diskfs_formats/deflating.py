"""Deflate streams of whole buffers. The one place that knows the codecs (docs/decisions/0008-deflate-library.md)."""

import zlib

import deflate
from isal import isal_zlib

from diskfs_formats.source import Buffer

DEFAULT_LEVEL = 2
MIN_LEVEL, MAX_LEVEL = 1, 12
_FAST_LEVELS = 2
"""Levels up to this one are ISA-L's, the others libdeflate's."""


def deflate_zlib(data: Buffer, level: int = DEFAULT_LEVEL) -> Buffer:
    """Return `data` as one zlib stream (RFC 1950), at a level from 1 (fast) to 12 (small).

    The same data and level give the same bytes, with the same versions of the libraries. Never more than 16 bytes and
    5 for each begun 64 KiB longer than the data. Releases the interpreter lock while it works.
    """
    fast = level <= _FAST_LEVELS
    stream = isal_zlib.compress(data, level) if fast else deflate.zlib_compress(data, level)
    if len(stream) > len(data):
        # Both store what does not compress; this makes sure of it.
        stored = zlib.compress(data, 0)
        if len(stored) < len(stream):
            return stored
    return stream
