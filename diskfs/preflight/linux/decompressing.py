"""The compressions of kernels and initramfs, each as a stream with bounds on memory and output.

Formats by their first bytes, as Linux's lib/decompress.c: gzip, bzip2, lzma, xz, lzo, lz4 (legacy frames), zstd.
"""

import bz2
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Protocol

import lz4.block
import lz4.frame

from diskfs.guest.errors import GuestError
from diskfs_formats.errors import UnsupportedFeature

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

CHUNK = 256 << 10
"""Bytes that are read, and at most decompressed, at a time."""
MAX_MEMORY = 128 << 20
"""Of a decoder; xz -9 asks for 65 MiB, zstd --ultra 22 for a window of 128 MiB."""
LZ4_LEGACY_BLOCK = 8 << 20
LZ4_LEGACY_MAGIC = b"\x02\x21\x4c\x18"

_SIGNATURES = (
    ("gzip", b"\x1f\x8b"), ("gzip", b"\x1f\x9e"), ("bzip2", b"BZh"), ("xz", b"\xfd7zXZ\0"), ("lzma", b"\x5d\0\0"),
    ("lzo", b"\x89LZO\0\r\n\x1a\n"), ("lz4", LZ4_LEGACY_MAGIC), ("lz4 frame", b"\x04\x22\x4d\x18"),
    ("zstd", b"\x28\xb5\x2f\xfd"),
)  # fmt: skip


def compression_of(head: bytes) -> str | None:
    """Return the compression whose first bytes these are, or None."""
    return next((name for name, magic in _SIGNATURES if head.startswith(magic)), None)


class _Decoder(Protocol):
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...


class _Gzip:
    """zlib's decoder with the interface of the others."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(wbits=31)
        self.needs_input = True

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        output = self._inflate.decompress(self._inflate.unconsumed_tail + data, max_length)
        self.needs_input = not self._inflate.unconsumed_tail
        return output

    @property
    def eof(self) -> bool:
        return self._inflate.eof

    @property
    def unused_data(self) -> bytes:
        return self._inflate.unused_data


def _decoder(compression: str) -> _Decoder:
    if compression == "gzip":
        return _Gzip()
    if compression == "bzip2":
        return bz2.BZ2Decompressor()
    if compression in {"xz", "lzma"}:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ if compression == "xz" else lzma.FORMAT_ALONE, memlimit=MAX_MEMORY)
    if compression == "zstd":
        return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: 27})
    assert compression == "lz4 frame"
    return lz4.frame.LZ4FrameDecompressor()  # type: ignore[no-any-return]  # the library has no types


class Decompression:
    """One compressed stream: `pieces` yields its content, and `unused` is what was pulled and came after it."""

    def __init__(self, compression: str, pull: Callable[[], bytes], name: str) -> None:
        if compression == "lzo":
            raise UnsupportedFeature(f"{name}: it is compressed with lzo, which is not read")
        self._compression = compression
        self._pull = pull
        self._name = name
        self.unused = b""

    def pieces(self) -> Iterator[bytes]:
        """Yield the content in pieces; raises GuestError where the stream is damaged or cut."""
        if self._compression == "lz4":
            yield from self._lz4_legacy()
            return
        decoder = _decoder(self._compression)
        data = b""
        needs_input = True
        while not decoder.eof:
            if needs_input:
                data = self._pull()
                if not data:
                    raise GuestError(f"{self._name}: the {self._compression} stream is cut")
            try:
                output = decoder.decompress(data, CHUNK)
            except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError, RuntimeError, zstd.ZstdError) as error:
                raise GuestError(f"{self._name}: the {self._compression} stream is damaged: {error}") from error
            data = b""
            needs_input = bool(getattr(decoder, "needs_input", True))
            if output:
                yield output
        self.unused = decoder.unused_data or b""

    def _lz4_legacy(self) -> Iterator[bytes]:
        """Blocks of 8 MiB with their compressed size before them; a size that is none ends the frame."""
        held = b""

        def fill(length: int) -> None:
            nonlocal held
            while len(held) < length:
                piece = self._pull()
                if not piece:
                    return
                held += piece

        fill(4)
        held = held[4:]
        while True:
            fill(4)
            size = int.from_bytes(held[:4], "little")
            if held[:4] == LZ4_LEGACY_MAGIC:
                held = held[4:]
                continue
            if len(held) < 4 or size == 0 or size > LZ4_LEGACY_BLOCK + (64 << 10):
                self.unused = held
                return
            fill(4 + size)
            if len(held) < 4 + size:
                raise GuestError(f"{self._name}: the lz4 stream is cut")
            try:
                block: bytes = lz4.block.decompress(held[4 : 4 + size], uncompressed_size=LZ4_LEGACY_BLOCK)
            except lz4.block.LZ4BlockError as error:
                raise GuestError(f"{self._name}: the lz4 stream is damaged: {error}") from error
            held = held[4 + size :]
            yield block
