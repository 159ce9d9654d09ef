"""CRC-32C as VHDX uses it: over a whole structure, whose own Checksum field counts as zero."""

from google_crc32c import extend

from diskfs_formats.source import Buffer

_FIELD_END = 8
"""The Checksum field is bytes 4 to 8 of a header, a region table and a log entry alike."""
_PIECE = 1 << 18
"""The library takes `bytes` only, so a view of the log is copied piece by piece."""


def structure_checksum(data: Buffer) -> int:
    """Return the CRC-32C that the structure in `data` should state."""
    view = memoryview(data)
    crc: int = extend(0, bytes(view[:4]) + bytes(4))
    for start in range(_FIELD_END, len(view), _PIECE):
        crc = extend(crc, bytes(view[start : start + _PIECE]))
    return crc
