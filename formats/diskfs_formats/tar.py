"""Tar archives as an index: which members there are, and where their bytes lie. Nothing is extracted.

Variants: ustar (POSIX.1-1988), pax (POSIX.1-2001), GNU (long names, base-256 numbers), and the header of Unix V7.
Specification: IEEE Std 1003.1, `pax`, "ustar Interchange Format" and "pax Extended Header"; GNU tar manual,
"Basic Tar Format". Blocks of 512 bytes; numbers are octal text.

Only regular files are members. Whatever makes two readers see different files is refused: links, sparse members,
duplicate names, a directory with data, global headers that rename or resize.
"""

import re
from dataclasses import dataclass
from typing import Any

from construct import Bytes, Padding, Struct

from diskfs_formats.binary import align_up, parse_bytes
from diskfs_formats.errors import CorruptImage, ImageError, TruncatedImage, UnsafeReference, UnsupportedFeature
from diskfs_formats.findings import Finding, Severity
from diskfs_formats.source import ByteSource
from diskfs_formats.text import printable

BLOCK = 512

HEADER = Struct(
    "name" / Bytes(100),
    "mode" / Bytes(8),
    "uid" / Bytes(8),
    "gid" / Bytes(8),
    "size" / Bytes(12),
    "mtime" / Bytes(12),
    "chksum" / Bytes(8),
    "typeflag" / Bytes(1),
    "linkname" / Bytes(100),
    "magic" / Bytes(6),
    "version" / Bytes(2),
    "uname" / Bytes(32),
    "gname" / Bytes(32),
    "devmajor" / Bytes(8),
    "devminor" / Bytes(8),
    "prefix" / Bytes(155),
    Padding(12),
)
assert HEADER.sizeof() == BLOCK

USTAR_MAGIC = b"ustar\0"
GNU_MAGIC = b"ustar "
V7_MAGIC = bytes(6)
CHECKSUM_FIELD = slice(148, 156)

REGULAR = (b"0", b"\0")
DIRECTORY = b"5"
PAX_NEXT = b"x"
PAX_GLOBAL = b"g"
GNU_LONG_NAME = b"L"
GNU_LONG_LINK = b"K"

_REFUSED: dict[bytes, tuple[type[ImageError], str]] = {
    b"1": (UnsafeReference, "a hard link"),
    b"2": (UnsafeReference, "a symbolic link"),
    b"3": (UnsupportedFeature, "a character device"),
    b"4": (UnsupportedFeature, "a block device"),
    b"6": (UnsupportedFeature, "a FIFO"),
    b"7": (UnsupportedFeature, "a contiguous file"),
    b"D": (UnsupportedFeature, "a GNU directory dump"),
    b"M": (UnsupportedFeature, "the rest of a member of another volume"),
    b"N": (UnsupportedFeature, "an old GNU long name"),
    b"S": (UnsupportedFeature, "a GNU sparse file"),
    b"V": (UnsupportedFeature, "a GNU volume label"),
    b"X": (UnsupportedFeature, "a Solaris extended header"),
}

MAX_MEMBERS = 4096
"""Members of one archive. The largest appliance seen has 6; a 64 TiB disk in chunks of 16 GiB has 4,096."""
MAX_RECORDS = 4 * MAX_MEMBERS
"""Headers of all kinds: a member may have a long name and an extended header, and lie in a directory of its own."""
MAX_EXTENDED_SIZE = 64 << 10
"""Bytes of one extended header or long name, which are read into memory; real ones are below 1 KiB."""
MAX_NAME_SIZE = 1024
"""Bytes of a name; file systems stop at 255 for each part of it."""
READ_AHEAD = 16 << 10
"""Bytes that are read along with a header: small members and their headers follow each other within these."""
TRAILER_LOOKED_AT = 64 << 10
"""Bytes after the end blocks that are looked at; GNU tar pads to 10 KiB, some writers to more."""
LAST_MTIME = 253402300799
"""The end of the year 9999; a later time is taken as none."""

_DRIVE = re.compile(r"[A-Za-z]:")


@dataclass(frozen=True, slots=True)
class TarMember:
    """A regular file of the archive. Offsets and sizes in bytes; `mtime` in seconds since 1970, 0 if unknown."""

    name: str
    offset: int
    size: int
    header_offset: int
    mtime: int


@dataclass(frozen=True, slots=True)
class TarIndex:
    """The members in the order of the archive; names are unique, relative, and without `.` or `..` parts."""

    members: tuple[TarMember, ...]
    findings: tuple[Finding, ...] = ()


def is_tar(head: bytes) -> bool:
    """Tell whether a file that begins so is a tar archive: by its checksum, and by its magic or a plausible V7 name."""
    block = head[:BLOCK]
    if len(block) < BLOCK or not _checksum_is_right(block):
        return False
    raw = HEADER.parse(block)
    if raw.magic in (USTAR_MAGIC, GNU_MAGIC):
        return True
    if raw.magic != V7_MAGIC or raw.typeflag not in (*REGULAR, DIRECTORY, b"1", b"2"):
        return False
    try:
        return _until_nul(raw.name).decode().isprintable() and raw.name[0] != 0
    except UnicodeDecodeError:
        return False


def path_problem(path: str) -> str | None:
    """Say why a path found inside an image may not be used, or None: it must stay below the place it starts from."""
    if not path:
        return "it is empty"
    if "\0" in path:
        return "it holds a NUL"
    if "\\" in path:
        return "it holds a backslash"
    if path.startswith("/"):
        return "it is absolute"
    if _DRIVE.match(path):
        return "it begins with a drive letter"
    if ".." in path.split("/"):
        return "it holds '..'"
    return None


def normalised_path(path: str) -> str:
    """Return a path without `.` parts and doubled slashes: `./vm.ovf` is `vm.ovf`."""
    return "/".join(part for part in path.split("/") if part not in {"", "."})


def read_tar_index(source: ByteSource) -> TarIndex:
    """Read the header of every member, and of the members' data no more than what follows a header closely.

    Raises CorruptImage if the source is no tar archive or is damaged, TruncatedImage if a member goes past its end,
    UnsafeReference and UnsupportedFeature for members that are not read.
    """
    return _Indexer(source).read()


class _Indexer:
    """One pass over the headers; every record moves the offset forward, so the pass ends."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._members: dict[str, TarMember] = {}
        self._findings: list[Finding] = []
        self._extended: dict[bytes, bytes] | None = None
        self._long_name: bytes | None = None
        self._window_offset, self._window = 0, b""

    def read(self) -> TarIndex:
        offset = 0
        for _ in range(MAX_RECORDS):
            if offset + BLOCK > self._source.size:
                self._end_without_blocks(offset)
                break
            block = self._read(offset, BLOCK)
            if not any(block) and offset:
                self._look_after_end(offset)
                break
            offset = self._record(block, offset)
        else:
            raise CorruptImage(f"{self._source.name}: the tar archive has over {MAX_RECORDS} headers")
        if self._extended is not None or self._long_name is not None:
            raise TruncatedImage(
                f"{self._source.name}: the tar archive ends at {offset:#x}, after a header that belongs to a member "
                "which does not follow: the file is incomplete"
            )
        return TarIndex(tuple(self._members.values()), tuple(self._findings))

    def _read(self, offset: int, length: int) -> bytes:
        """Return bytes that lie inside of the source, mostly from what was read along with an earlier header."""
        at = offset - self._window_offset
        if at < 0 or at + length > len(self._window):
            self._window = self._source.read_at(offset, min(max(length, READ_AHEAD), self._source.size - offset))
            self._window_offset, at = offset, 0
        return self._window[at : at + length]

    def _record(self, block: bytes, offset: int) -> int:
        """Take in the record whose header lies at `offset`; return the offset of the next one."""
        where = f"{self._source.name}: tar header at offset {offset:#x}"
        if not _checksum_is_right(block):
            problem = "the file is no tar archive" if offset == 0 else "the archive is damaged there"
            raise CorruptImage(f"{where}: its checksum is wrong: {problem}")
        raw = parse_bytes(HEADER, block, self._source, offset, "tar header")
        if raw.typeflag in (PAX_NEXT, PAX_GLOBAL, GNU_LONG_NAME, GNU_LONG_LINK):
            return self._extension(raw, offset, where)
        return self._member(raw, offset, where)

    def _extension(self, raw: Any, offset: int, where: str) -> int:
        """Take in a record that says something about the member after it."""
        size = _number(raw.size, "size", where)
        if size > MAX_EXTENDED_SIZE:
            raise CorruptImage(
                f"{where}: an extended header or long name of {size} bytes, at most {MAX_EXTENDED_SIZE} are read"
            )
        start = offset + BLOCK
        if start + size > self._source.size:
            raise TruncatedImage(
                f"{where}: an extended header of {size} bytes, the file ends at {self._source.size:#x}: "
                "the file is incomplete"
            )
        if raw.typeflag != GNU_LONG_LINK:
            self._remember(raw.typeflag, self._read(start, size), where)
        return start + align_up(size, BLOCK)

    def _remember(self, typeflag: bytes, data: bytes, where: str) -> None:
        if typeflag == GNU_LONG_NAME:
            if self._long_name is not None:
                raise CorruptImage(f"{where}: two long names follow each other")
            self._long_name = _until_nul(data)
            return
        records = _pax_records(data, where)
        if any(key.startswith(b"GNU.sparse.") for key in records):
            raise UnsupportedFeature(f"{where}: a GNU sparse file; store the file whole (tar without --sparse)")
        if typeflag == PAX_NEXT:
            if self._extended is not None:
                raise CorruptImage(f"{where}: two extended headers follow each other")
            self._extended = records
        elif b"path" in records or b"size" in records:
            raise UnsupportedFeature(f"{where}: a global extended header that sets path or size for all members")

    def _member(self, raw: Any, offset: int, where: str) -> int:
        extended, self._extended = self._extended or {}, None
        long_name, self._long_name = self._long_name, None
        raw_name = extended.get(b"path", _header_name(raw) if long_name is None else long_name)
        shown = printable(raw_name[:MAX_NAME_SIZE].decode("utf-8", "surrogateescape"))
        where = f"{where}, member {shown!r}"
        if raw.typeflag in _REFUSED:
            error, kind = _REFUSED[raw.typeflag]
            raise error(f"{where}: it is {kind}; only regular files are read from an appliance")
        is_directory = raw.typeflag == DIRECTORY or (raw.typeflag in REGULAR and raw_name.endswith(b"/"))
        if not is_directory and raw.typeflag not in REGULAR:
            raise UnsupportedFeature(f"{where}: its type {raw.typeflag!r} is not known")
        name = _safe_name(raw_name, where, may_be_empty=is_directory)
        size = _pax_size(extended[b"size"], where) if b"size" in extended else _number(raw.size, "size", where)
        start = offset + BLOCK
        if is_directory:
            if size:
                raise CorruptImage(f"{where}: a directory of {size} bytes; a directory has no data")
            return start
        if start + size > self._source.size:
            raise TruncatedImage(
                f"{where}: {size} bytes from {start:#x}, the file ends at {self._source.size:#x}: the file is "
                "incomplete; copy or download it again"
            )
        if not _is_metadata(name):
            self._add(TarMember(name, start, size, offset, _mtime(raw.mtime, where)), where)
        return start + align_up(size, BLOCK)

    def _add(self, member: TarMember, where: str) -> None:
        other = self._members.get(member.name)
        if other is not None:
            raise CorruptImage(
                f"{where}: the name was there before, at offset {other.header_offset:#x}: which of the two is meant "
                "cannot be told"
            )
        if len(self._members) == MAX_MEMBERS:
            raise CorruptImage(f"{where}: the archive has over {MAX_MEMBERS} members")
        self._members[member.name] = member

    def _end_without_blocks(self, offset: int) -> None:
        if offset == 0:
            raise CorruptImage(
                f"{self._source.name}: {self._source.size} bytes are no tar archive, a header alone has {BLOCK}"
            )
        message = f"{self._source.name}: the tar archive ends at {self._source.size:#x} without its two zero blocks"
        if offset < self._source.size and any(self._source.read_at(offset, self._source.size - offset)):
            message += f", and the {self._source.size - offset} bytes before that are no whole header"
        self._findings.append(
            Finding("tar-no-end", Severity.WARNING, message, "members after this point may be missing: compare sizes")
        )

    def _look_after_end(self, offset: int) -> None:
        after = offset + BLOCK
        if any(self._source.read_at(after, min(self._source.size - after, TRAILER_LOOKED_AT))):
            self._findings.append(
                Finding(
                    "tar-trailing-data",
                    Severity.WARNING,
                    f"{self._source.name}: data follows the end of the tar archive at {offset:#x}; it is not read",
                )
            )


def _checksum_is_right(block: bytes) -> bool:
    """Compare the stored sum of the header's bytes; some old programs summed them as signed."""
    stored = _until_nul(block[CHECKSUM_FIELD]).strip(b" ")
    if not _is_octal(stored):
        return False
    rest = bytearray(block)
    rest[CHECKSUM_FIELD] = b" " * 8
    missing = sum(rest) - int(stored, 8)
    return missing == 0 or missing == 256 * sum(byte >> 7 for byte in rest)


def _is_octal(text: bytes) -> bool:
    return bool(text) and not text.strip(b"01234567")


def _until_nul(field: bytes) -> bytes:
    return field.split(b"\0", 1)[0]


def _number(field: bytes, title: str, where: str) -> int:
    """Return an unsigned number: octal text, or big-endian binary (base-256) where the first bit is set."""
    if field[0] & 0x80:
        if field[0] & 0x40:
            raise CorruptImage(f"{where}: its {title} is negative")
        return int.from_bytes(bytes([field[0] & 0x3F]) + field[1:], "big")
    text = _until_nul(field).strip(b" ")
    if not text:
        return 0
    if not _is_octal(text):
        kind = "negative" if text.startswith(b"-") else "not an octal number"
        raise CorruptImage(f"{where}: its {title} is {kind}: {printable(text.decode('latin-1'))!r}")
    return int(text, 8)


def _mtime(field: bytes, where: str) -> int:
    try:
        mtime = _number(field, "mtime", where)
    except CorruptImage:
        return 0
    return mtime if mtime <= LAST_MTIME else 0


def _pax_size(text: bytes, where: str) -> int:
    if not text.isdigit() or len(text) > 20:
        raise CorruptImage(
            f"{where}: the size in its extended header is {printable(text.decode('latin-1'), 40)!r}, expected a "
            "decimal number"
        )
    return int(text)


def _pax_records(data: bytes, where: str) -> dict[bytes, bytes]:
    """Parse `LENGTH KEY=VALUE\\n` records; the length counts the whole record. The last of two equal keys counts."""
    records = {}
    position = 0
    while position < len(data):
        space = data.find(b" ", position, position + 8)
        digits = data[position:space] if space > 0 else b""
        end = position + int(digits) if digits.isdigit() else 0
        if not space + 1 < end <= len(data) or data[end - 1 : end] != b"\n":
            raise CorruptImage(f"{where}: byte {position} of its extended header does not begin a record")
        key, separator, value = data[space + 1 : end - 1].partition(b"=")
        if not separator:
            raise CorruptImage(f"{where}: the record at byte {position} of its extended header has no '='")
        records[key] = value
        position = end
    return records


def _header_name(raw: Any) -> bytes:
    name = _until_nul(raw.name)
    # GNU tar keeps other things where ustar has the prefix.
    prefix = _until_nul(raw.prefix) if raw.magic == USTAR_MAGIC else b""
    return prefix + b"/" + name if prefix else name


def _safe_name(raw: bytes, where: str, *, may_be_empty: bool) -> str:
    if len(raw) > MAX_NAME_SIZE:
        raise CorruptImage(f"{where}: its name has {len(raw)} bytes, at most {MAX_NAME_SIZE} are read")
    name = raw.decode("utf-8", "surrogateescape")
    # Checked as it is written: taking "." parts out could hide that a path is absolute.
    problem = path_problem(name) or path_problem(normalised_path(name))
    if problem and not (may_be_empty and not normalised_path(name) and not name.startswith("/")):
        raise UnsafeReference(f"{where}: the name may not be used: {problem}")
    return normalised_path(name)


def _is_metadata(name: str) -> bool:
    """Tell whether a member is about another one: AppleDouble files of macOS, pax headers that a program spilled."""
    *folders, last = name.split("/")
    return last.startswith("._") or any(part == "PaxHeader" or part.startswith("PaxHeaders.") for part in folders)
