"""Deflate streams of bounded size. The one place that knows the codec (docs/decisions/0002-inflate-library.md)."""

import deflate

from diskfs_formats.source import Buffer

_ADLER32_SIZE = 4


class InflateError(ValueError):
    """The stream is damaged, is not complete, is followed by other bytes, or holds more than it may."""


def inflate_zlib(data: Buffer, max_size: int) -> bytearray:
    """Inflate one whole zlib stream (RFC 1950) of at most `max_size` bytes.

    Allocates `max_size` bytes whatever the stream claims. The stream's Adler-32 is verified, and it must end where
    `data` ends. Raises InflateError. Releases the interpreter lock while it works.
    """
    try:
        inflated = deflate.zlib_decompress(data, max_size)
    except deflate.DeflateError as error:
        raise InflateError(f"the deflate stream is damaged, incomplete, or holds over {max_size} bytes") from error
    # The library stops at the end of the stream; only its checksum can tell that this is also the end of the data.
    if int.from_bytes(data[-_ADLER32_SIZE:], "big") != deflate.adler32(inflated):
        raise InflateError("other bytes follow the end of the deflate stream")
    return inflated


def inflate_raw(data: Buffer, max_size: int) -> bytearray:
    """Inflate the raw deflate stream (RFC 1951), of at most `max_size` bytes, that `data` begins with.

    Allocates `max_size` bytes whatever the stream claims. What follows the end of the stream is not looked at, and a
    raw stream has no checksum: the caller knows how many bytes it must give. Raises InflateError. Releases the
    interpreter lock while it works.
    """
    try:
        return deflate.deflate_decompress(data, max_size)
    except deflate.DeflateError as error:
        raise InflateError(f"the deflate stream is damaged, incomplete, or holds over {max_size} bytes") from error
