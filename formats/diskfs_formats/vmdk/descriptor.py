"""The text descriptor of a VMDK.

Specification: VMware, Virtual Disk Format 5.0 (2011), "The Descriptor File". `key=value` lines, extent lines
(`RW 4192256 SPARSE "disk-s001.vmdk"`), and the disk database (`ddb.`). Sizes and offsets count 512-byte sectors.
"""

import codecs
import re
from dataclasses import dataclass

from diskfs_formats.errors import CorruptImage
from diskfs_formats.text import printable

MAX_DESCRIPTOR_SIZE = 1 << 20
"""Bytes; conventional are 20 sectors, VirtualBox and qemu read at most 10 MiB and 1 MiB."""
MAX_EXTENT_LINES = 4096
"""A 62 TB disk split into 2 GB files has 31,000; that would need no descriptor under 1 MiB. 4096 covers 8 TB."""
NO_PARENT = 0xFFFFFFFF
SECTOR_SIZES = frozenset({512, 4096})

_EXTENT_LINE = re.compile(
    r"^(?P<access>RW|RDONLY|NOACCESS)\s+(?P<sectors>\d{1,19})\s+(?P<type>[A-Z]+)"
    r'(?:\s+"(?P<name>[^"]*)"(?:\s+(?P<offset>\d{1,19}))?(?:\s+.*)?)?\s*$',
    re.IGNORECASE | re.ASCII,
)
# Patterns never have two neighbouring parts that match the same characters: a line of 1 MiB takes linear time.
_KEY_LINE = re.compile(r"^(?P<key>[\w.]+)\s*=(?P<value>.*)$")
_ENCODING_LINE = re.compile(rb'^[ \t]*encoding[ \t]*=[ \t]*"?([A-Za-z0-9_.:-]{1,40})', re.IGNORECASE | re.MULTILINE)
_ASCII = bytes(range(0x20, 0x5B)) + bytes(range(0x61, 0x7B)) + b"\t\r\n_"
"""What a descriptor's keys and numbers are written in; every encoding that leaves these as they are can be trusted."""


@dataclass(frozen=True, slots=True)
class ExtentLine:
    """One line of the descriptor: a file, or a run of zeroes, that backs part of the disk."""

    access: str
    sectors: int
    type: str
    file_name: str | None
    offset: int


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A parsed descriptor. Keys of `values` are in lower case."""

    values: dict[str, str]
    extents: tuple[ExtentLine, ...]

    @property
    def create_type(self) -> str:
        """Such as `streamOptimized`; empty if the line is absent."""
        return self.values.get("createtype", "")

    @property
    def cid(self) -> int | None:
        """The content identifier, or None if absent or not a number."""
        return _hexadecimal(self.values.get("cid"))

    @property
    def parent_cid(self) -> int:
        """The parent's content identifier; NO_PARENT if there is none."""
        found = _hexadecimal(self.values.get("parentcid"))
        return NO_PARENT if found is None else found

    @property
    def parent_file_name(self) -> str:
        """What `parentFileNameHint` says: untrusted, a path or a bare name."""
        return self.values.get("parentfilenamehint", "")

    @property
    def has_parent(self) -> bool:
        """Whether the disk is a delta, whose holes are not zeroes but its parent's data."""
        # Without parentCID a parent's name is all that tells a delta.
        return self.parent_cid != NO_PARENT or ("parentcid" not in self.values and bool(self.parent_file_name))

    @property
    def sector_size(self) -> int:
        """Bytes of a sector of the disk, as open-vmdk's `ddb.logicalSectorSize` says; 512 if nothing usable is said.

        The descriptor's own numbers count 512 bytes all the same.
        """
        text = self.values.get("ddb.logicalsectorsize", "")
        return next((size for size in SECTOR_SIZES if text == str(size)), 512)

    @property
    def sectors(self) -> int:
        """The virtual size that the extent lines add up to."""
        return sum(line.sectors for line in self.extents)


def is_descriptor(head: bytes) -> bool:
    """Tell whether text that begins so is a stand-alone descriptor: comments and blank lines, then `version=`."""
    text = head[:4096].split(b"\0", 1)[0].decode("latin-1")
    for line in _lines(text):
        line = line.strip().lower()  # noqa: PLW2901 - the line without its ends is the line
        if not line or line.startswith("#"):
            continue
        key, _, value = line.partition("=")
        return key.strip() == "version" and value.strip().strip('"') in {"1", "2", "3"}
    return False


def parse_descriptor(data: bytes, name: str) -> Descriptor:
    """Parse a descriptor that ends at the first NUL; raises CorruptImage for a line that looks like an extent but is
    none, because an extent that is passed over shifts every byte behind it, and for a parentCID that is no number,
    because a delta that is taken for a whole disk reads as zero where its parent has data.
    """
    text = _decoded(data.split(b"\0", 1)[0])
    values: dict[str, str] = {}
    extents: list[ExtentLine] = []
    for number, line in enumerate(_lines(text), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        if stripped.split(None, 1)[0].upper() in {"RW", "RDONLY", "NOACCESS"}:
            if len(extents) == MAX_EXTENT_LINES:
                raise CorruptImage(f"{name}: the descriptor has over {MAX_EXTENT_LINES} extent lines")
            extents.append(_extent_line(stripped, number, name))
        elif match := _KEY_LINE.match(stripped):
            # qemu and VMware take the first of two equal keys.
            values.setdefault(match["key"].lower(), match["value"].strip().strip('"'))
    parent_cid = values.get("parentcid")
    if parent_cid is not None and _hexadecimal(parent_cid) is None:
        raise CorruptImage(
            f"{name}: the descriptor's parentCID is {printable(parent_cid, 40)!r}, expected 8 hexadecimal digits"
        )
    return Descriptor(values, tuple(extents))


def _extent_line(line: str, number: int, name: str) -> ExtentLine:
    match = _EXTENT_LINE.match(line)
    if match is None:
        raise CorruptImage(
            f"{name}: descriptor line {number} is not an extent line: {printable(line, 80)!r}; expected "
            'ACCESS SECTORS TYPE "FILE" [OFFSET]'
        )
    return ExtentLine(
        access=match["access"].upper(),
        sectors=int(match["sectors"]),
        type=match["type"].upper(),
        file_name=match["name"],
        offset=int(match["offset"] or 0),
    )


def _decoded(data: bytes) -> str:
    """Decode with the descriptor's own `encoding`, which is itself written in ASCII."""
    match = _ENCODING_LINE.search(data)
    encoding = match[1].decode("ascii") if match else "utf-8"
    try:
        if codecs.lookup(encoding).name in _NOT_TEXT or _ASCII.decode(encoding) != _ASCII.decode("ascii"):
            encoding = "utf-8"
        return data.decode(encoding, "surrogateescape")
    except (LookupError, UnicodeError, ValueError):
        return data.decode("utf-8", "surrogateescape")


_NOT_TEXT = frozenset({"idna", "punycode", "unicode-escape", "raw-unicode-escape", "undefined", "utf-7", "mbcs", "oem"})
"""Codecs that read ASCII letters as they are, and escapes in them as something else."""


def _lines(text: str) -> list[str]:
    """Split at LF, CR LF and CR alone: `splitlines` would also begin a line at U+2028 and the like, inside a name."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _hexadecimal(text: str | None) -> int | None:
    if text is None or not re.fullmatch(r"[0-9A-Fa-f]{1,8}", text):
        return None
    return int(text, 16)
