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

_EXTENT_LINE = re.compile(
    r"^(?P<access>RW|RDONLY|NOACCESS)\s+(?P<sectors>\d{1,19})\s+(?P<type>[A-Z]+)"
    r'(?:\s+"(?P<name>[^"]*)"(?:\s+(?P<offset>\d{1,19}))?(?:\s+.*)?)?\s*$',
    re.IGNORECASE,
)
_KEY_LINE = re.compile(r"^(?P<key>[\w.]+)\s*=\s*(?P<value>.*?)\s*$")


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
    def sectors(self) -> int:
        """The virtual size that the extent lines add up to."""
        return sum(line.sectors for line in self.extents)


def is_descriptor(head: bytes) -> bool:
    """Tell whether text that begins so is a stand-alone descriptor: comments and blank lines, then `version=`."""
    text = head[:4096].split(b"\0", 1)[0].decode("latin-1")
    for line in text.splitlines():
        line = line.strip().lower()  # noqa: PLW2901 - the line without its ends is the line
        if not line or line.startswith("#"):
            continue
        key, _, value = line.partition("=")
        return key.strip() == "version" and value.strip().strip('"') in {"1", "2", "3"}
    return False


def parse_descriptor(data: bytes, name: str) -> Descriptor:
    """Parse a descriptor that ends at the first NUL; raises CorruptImage for a line that looks like an extent but is
    none, because an extent that is passed over shifts every byte behind it.
    """
    text = _decoded(data.split(b"\0", 1)[0])
    values: dict[str, str] = {}
    extents: list[ExtentLine] = []
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        if stripped.split(None, 1)[0].upper() in {"RW", "RDONLY", "NOACCESS"}:
            if len(extents) == MAX_EXTENT_LINES:
                raise CorruptImage(f"{name}: the descriptor has over {MAX_EXTENT_LINES} extent lines")
            extents.append(_extent_line(stripped, number, name))
        elif match := _KEY_LINE.match(stripped):
            # qemu and VMware take the first of two equal keys.
            values.setdefault(match["key"].lower(), match["value"].strip('"'))
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
    latin = data.decode("latin-1")
    match = re.search(r'^\s*encoding\s*=\s*"?([\w.:-]{1,40})', latin, re.IGNORECASE | re.MULTILINE)
    encoding = match[1] if match else "utf-8"
    try:
        if codecs.lookup(encoding).name in _NOT_TEXT:
            encoding = "utf-8"
        return data.decode(encoding, "surrogateescape")
    except (LookupError, UnicodeError, ValueError):
        return data.decode("utf-8", "surrogateescape")


_NOT_TEXT = frozenset({"idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined", "utf-7", "mbcs", "oem"})


def _hexadecimal(text: str | None) -> int | None:
    if text is None or not re.fullmatch(r"[0-9A-Fa-f]{1,8}", text):
        return None
    return int(text, 16)
