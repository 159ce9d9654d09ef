"""Compressed extents of Btrfs.

Layout: Btrfs documentation, dev/On-disk-format.rst; Linux, fs/btrfs/lzo.c for the segments of LZO.
"""

import sys
import zlib

from diskfs.guest.errors import GuestError
from diskfs.guest.readers import lzo

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ZLIB, LZO, ZSTD = range(1, 4)
MAX_COMPRESSED = 128 << 10
"""Bytes that one compressed extent holds, packed or not."""

ZSTD_LIMITS: dict[int, int] = {zstd.DecompressionParameter.window_log_max: 17}
"""Frames are made with windows of at most 128 KiB."""


def unpacked(compression: int, data: bytes, size: int, sector_size: int) -> bytes:
    """Return the `size` bytes of a compressed extent; raises GuestError if it is damaged. Not compressed, `data`."""
    try:
        if compression == ZLIB:
            return zlib.decompressobj().decompress(data, size)
        if compression == ZSTD:
            return bytes(zstd.ZstdDecompressor(options=ZSTD_LIMITS).decompress(data, size))
    except (zlib.error, zstd.ZstdError) as error:
        raise GuestError(f"a compressed extent is damaged: {error}") from error
    return _unpacked_lzo(data, size, sector_size) if compression == LZO else data


def _unpacked_lzo(data: bytes, size: int, sector_size: int) -> bytes:
    """Unpack segments, each of a sector; a length never crosses the end of a sector."""
    total = min(int.from_bytes(data[:4], "little"), len(data))
    out = bytearray()
    at = 4
    while at + 4 <= total and len(out) < size:
        if -at % sector_size < 4 and at % sector_size:
            at += -at % sector_size
        length = int.from_bytes(data[at : at + 4], "little")
        at += 4
        if not length or at + length > total:
            raise GuestError(f"a compressed extent is damaged: a segment of {length} bytes at {at} of {total}")
        out += lzo.decompress(data[at : at + length], sector_size)
        at += length
    return bytes(out)
