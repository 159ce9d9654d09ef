"""Writing tar archives as appliances need them: ustar headers, and nothing that a reader of those would not know.

Sizes from 8 GiB are binary (base-256), as GNU tar writes them: readers of appliances know them better than extended
headers, which VirtualBox passes over without a look at the size in them.
"""

from diskfs_formats.binary import align_up
from diskfs_formats.errors import UnsupportedFeature
from diskfs_formats.tar import BLOCK, CHECKSUM_FIELD, HEADER, USTAR_MAGIC
from diskfs_formats.text import printable

MAX_NAME = 100
MAX_OCTAL_SIZE = 8**11 - 1
RECORD = 20 * BLOCK
"""Archives are padded to a multiple of this, as tar's own."""
_MODE = 0o644
_BASE_256 = 0x80
_FIELD_SIZES = {field.name: field.sizeof() for field in HEADER.subcons if field.name}


def tar_header(name: str, size: int, mtime: int) -> bytes:
    """Return the header of a regular file; raises UnsupportedFeature for a name that does not fit.

    `size` in bytes, `mtime` in seconds since 1970.
    """
    encoded = name.encode("utf-8", "surrogateescape")
    if not 0 < len(encoded) <= MAX_NAME:
        raise UnsupportedFeature(f"{printable(name, 80)!r}: a name in an appliance has 1 to {MAX_NAME} bytes")
    fields = {
        "name": encoded,
        "mode": _octal(_MODE, 8),
        "uid": _octal(0, 8),
        "gid": _octal(0, 8),
        "size": _octal(size, 12) if size <= MAX_OCTAL_SIZE else bytes([_BASE_256]) + size.to_bytes(11, "big"),
        "mtime": _octal(mtime, 12),
        "chksum": b" " * 8,
        "typeflag": b"0",
        "linkname": b"",
        "magic": USTAR_MAGIC,
        "version": b"00",
        "uname": b"root",
        "gname": b"root",
        "devmajor": _octal(0, 8),
        "devminor": _octal(0, 8),
        "prefix": b"",
    }
    block = HEADER.build({key: value.ljust(_FIELD_SIZES[key], b"\0") for key, value in fields.items()})
    # The sum is taken with spaces in its own place.
    checksum = b"%06o\0 " % sum(block)
    return block[: CHECKSUM_FIELD.start] + checksum + block[CHECKSUM_FIELD.stop :]


def padding(size: int) -> bytes:
    """Return the zeroes after a member of `size` bytes."""
    return bytes(align_up(size, BLOCK) - size)


def archive_end(size: int) -> bytes:
    """Return what ends an archive of `size` bytes: two empty blocks, and as many more as fill a record."""
    return bytes(align_up(size + 2 * BLOCK, RECORD) - size)


def _octal(number: int, width: int) -> bytes:
    return b"%0*o\0" % (width - 1, number)
