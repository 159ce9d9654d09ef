"""Compressed clusters. The one place that knows the zstd codec.

A record's length is known only to the sector, so other bytes may follow the stream; neither form carries a checksum
that a writer must fill, so the length of what comes out is the one test of a whole cluster.
"""

import enum
import sys

from diskfs_formats.inflate import InflateError, inflate_raw
from diskfs_formats.source import Buffer

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAX_WINDOW_LOG = 23
"""A frame may ask for a window of 8 MiB, what level 19 takes for data of unknown size; no cluster is over 2 MiB."""
_ZSTD_LIMITS: dict[int, int] = {zstd.DecompressionParameter.window_log_max: MAX_WINDOW_LOG}


class CompressionType(enum.IntEnum):
    """The header's compression_type: one for all compressed clusters of an image."""

    DEFLATE = 0
    ZSTD = 1


class DamagedCluster(ValueError):
    """The record is not one whole compressed cluster."""


def decompress(compression_type: CompressionType, record: Buffer, cluster_size: int) -> Buffer:
    """Return the cluster that `record` begins with; raises DamagedCluster unless it has exactly `cluster_size` bytes.

    Allocates little more than `cluster_size`. Releases the interpreter lock while it works.
    """
    if compression_type is CompressionType.ZSTD:
        cluster: Buffer = _zstd(record, cluster_size)
    else:
        try:
            cluster = inflate_raw(record, cluster_size)
        except InflateError as error:
            raise DamagedCluster(str(error)) from error
    if len(cluster) != cluster_size:
        raise DamagedCluster(f"it holds {len(cluster)} bytes, expected {cluster_size}")
    return cluster


def _zstd(record: Buffer, cluster_size: int) -> bytes:
    decompressor = zstd.ZstdDecompressor(options=_ZSTD_LIMITS)
    try:
        # With room for one byte too many, the decoder gets to the end of a frame that holds a whole cluster.
        cluster = decompressor.decompress(record, cluster_size + 1)
    except zstd.ZstdError as error:
        raise DamagedCluster(f"the zstd frame is damaged: {error}") from error
    if not decompressor.eof:
        raise DamagedCluster(f"the zstd frame is incomplete, or holds over {cluster_size} bytes")
    return cluster
