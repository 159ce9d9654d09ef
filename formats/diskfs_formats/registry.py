"""Which formats there are, and which one an image is. A new format is one line in DRIVERS, and in WRITERS if it is
written.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, cast

from diskfs_formats.driver import DiskImage, FormatDriver, Match, NoRelatedFiles, ProbeWindow, RelatedFiles
from diskfs_formats.errors import UnknownFormat, UnsupportedFeature
from diskfs_formats.findings import Finding
from diskfs_formats.raw import RawDriver
from diskfs_formats.source import ByteSource
from diskfs_formats.text import printable

if TYPE_CHECKING:
    from diskfs_formats.writer import LayoutWriter, StreamWriter


class LazyDriver:
    """A driver whose module is loaded when an image may be its format, so that a command starts as fast with ten
    formats as with one.

    `hint` costs next to nothing and may be wrong in one direction only: it never says no to an image of the format.
    """

    def __init__(self, name: str, location: str, hint: Callable[[ProbeWindow], bool]) -> None:
        self._name = name
        self._location = location
        self._hint = hint

    @property
    def name(self) -> str:
        return self._name

    def probe(self, window: ProbeWindow, /) -> Match:
        return self._driver().probe(window) if self._hint(window) else Match.NO

    def open(self, source: ByteSource, related: RelatedFiles, /) -> DiskImage:
        return self._driver().open(source, related)

    def check(self, source: ByteSource, related: RelatedFiles, /) -> Iterator[Finding]:
        return self._driver().check(source, related)

    def _driver(self) -> FormatDriver:
        return cast("FormatDriver", _loaded(self._location)())


def _loaded(location: str) -> Callable[[], object]:
    module, _, name = location.partition(":")
    return cast("Callable[[], object]", getattr(import_module(f"diskfs_formats.{module}"), name))


def _begins_with(*magics: bytes) -> Callable[[ProbeWindow], bool]:
    return lambda window: window.head.startswith(magics)


def _may_be_vmdk(window: ProbeWindow) -> bool:
    return (
        window.head.startswith((b"KDMV", b"kdmv", b"COWD", b"\xbe\xba\xfe\xca"))
        or b"version" in window.head[:4096].lower()
    )


def _may_be_vhd(window: ProbeWindow) -> bool:
    return window.head.startswith(b"conectix") or b"conectix" in window.tail


def _may_be_vdi(window: ProbeWindow) -> bool:
    return window.head[64:68] == b"\x7f\x10\xda\xbe"


DRIVERS: tuple[FormatDriver, ...] = (
    LazyDriver("vmdk", "vmdk:VmdkDriver", _may_be_vmdk),
    LazyDriver("vhd", "vhd:VhdDriver", _may_be_vhd),
    LazyDriver("vhdx", "vhdx:VhdxDriver", _begins_with(b"vhdxfile")),
    LazyDriver("qcow2", "qcow2:Qcow2Driver", _begins_with(b"QFI\xfb")),
    LazyDriver("vdi", "vdi:VdiDriver", _may_be_vdi),
    RawDriver(),
)
"""In probe order; raw is what is left."""


@dataclass(frozen=True, slots=True)
class WriterEntry:
    """A writer whose module is loaded when it is used: the format's name, the variants that it writes, its class.

    `max_size` is the largest disk, in bytes, that it writes by default; it may refuse smaller ones for what they hold.
    """

    name: str
    variants: tuple[str, ...]
    location: str
    max_size: int | None = None

    def fits(self, size: int) -> bool:
        """Tell whether a disk of `size` bytes can be written, as far as its size decides."""
        return size > 0 and (self.max_size is None or size <= self.max_size)

    def load(self) -> "LayoutWriter | StreamWriter":
        """Return the writer."""
        return cast("LayoutWriter | StreamWriter", _loaded(self.location)())


WRITERS: tuple[WriterEntry, ...] = (
    WriterEntry("raw", ("raw",), "raw:RawWriter"),
    WriterEntry("vhd", ("dynamic", "fixed"), "vhd.writing:VhdWriter", 2040 << 30),
    WriterEntry("vhdx", ("dynamic", "fixed"), "vhdx.writing:VhdxWriter", 64 << 40),
    WriterEntry("vmdk", ("streamOptimized",), "vmdk.stream_writing:StreamOptimizedWriter", 62 << 40),
    WriterEntry("vmdk", ("monolithicSparse", "monolithicFlat"), "vmdk.writing:VmdkWriter", 62 << 40),
)
"""A format may have several entries; the first variant of the first one is its default."""

_TABLE_SIGNATURES = (
    (510, b"\x55\xaa", "MBR"),
    (512, b"EFI PART", "GPT"),
    (4096, b"EFI PART", "GPT"),
)


def driver_named(name: str, where: str = "") -> FormatDriver:
    """Return the driver of a format; raises UnsupportedFeature if it is not read. `where` is the file in question."""
    for driver in DRIVERS:
        if driver.name == name:
            return driver
    known = ", ".join(driver.name for driver in DRIVERS)
    place = f"{where}: " if where else ""
    raise UnsupportedFeature(f"{place}format {printable(name, 40)!r} is not read; these are: {known}")


def writable_variants(name: str) -> tuple[str, ...]:
    """Return the variants of a format that are written, its default first; none if it is not written."""
    return tuple(variant for entry in WRITERS if entry.name == name for variant in entry.variants)


def writer_entry(name: str, variant: str) -> WriterEntry:
    """Return the entry of a format's variant; raises UnsupportedFeature if it is not written."""
    variants = writable_variants(name)
    if not variants:
        known = ", ".join(dict.fromkeys(entry.name for entry in WRITERS))
        raise UnsupportedFeature(f"format {printable(name, 40)!r} is not written; these are: {known}")
    for entry in WRITERS:
        if entry.name == name and variant in entry.variants:
            return entry
    raise UnsupportedFeature(
        f"variant {printable(variant, 40)!r} of {name} is not written; these are: {', '.join(variants)}"
    )


def writer_for(name: str, variant: str = "") -> "tuple[LayoutWriter | StreamWriter, str]":
    """Return the writer of a format's variant, and the variant, which is the default if none is asked for.

    Raises UnsupportedFeature if it is not written.
    """
    variant = variant or next(iter(writable_variants(name)), "")
    return writer_entry(name, variant).load(), variant


def detect(window: ProbeWindow, name: str, containers: Sequence[str] = ()) -> str:
    """Return the name of the one format, or of the one container of `containers`, that the content is.

    `name` is for messages. Raises UnknownFormat if none or more than one matches (the answer would be a guess),
    UnsupportedFeature if the content is a format that is recognised and not read.
    """
    matches = [(driver.probe(window), driver) for driver in DRIVERS]
    foreign = recognised_only(window)
    names = [*containers, *(driver.name for match, driver in matches if match is Match.SIGNATURE), *foreign]
    if names and _table_over_header(window, names):
        names.append("raw with a partition table")
    if len(names) > 1:
        raise UnknownFormat(f"{name}: it could be {' or '.join(names)}; say which it is with --format")
    if foreign:
        raise UnsupportedFeature(
            f"{name}: {foreign[0]} images are not read; if this is a raw disk that begins so, say --format raw"
        )
    if names:
        return names[0]
    for match, driver in matches:
        if match is Match.FALLBACK:
            return driver.name
    raise UnknownFormat(f"{name}: the file is empty")


def open_image(source: ByteSource, related: RelatedFiles | None = None, *, format_name: str | None = None) -> DiskImage:
    """Detect the format of `source`, or take the one named, and open it. The disk owns the source."""
    driver = driver_named(format_name or detect(ProbeWindow.of(source), source.name))
    return driver.open(source, related or NoRelatedFiles())


_FOREIGN = (
    # offset, signature, what it is
    (0, b"QED\0", "QED"),
    (0, b"WithoutFreeSpace", "Parallels"),
    (0, b"WithouFreSpacExt", "Parallels"),
    (0, b"\x1f\x8b\x08", "gzip-compressed"),
    (0, b"\xfd7zXZ\0", "xz-compressed"),
    (0, b"\x28\xb5\x2f\xfd", "zstd-compressed"),
    (0, b"PK\x03\x04", "zip-compressed"),
)


def recognised_only(window: ProbeWindow) -> list[str]:
    """Name the formats that the content is and that no driver reads: better refused by name than read as raw."""
    return [name for offset, magic, name in _FOREIGN if window.head[offset : offset + len(magic)] == magic]


def _table_over_header(window: ProbeWindow, names: Sequence[str]) -> bool:
    """Tell whether a partition table lies where the header of the format it seems to be should go on.

    A guest can write any header into the first bytes of its raw disk. A fixed VHD is the one format that keeps the
    guest's own first sector; its footer at the end tells it.
    """
    if names == ["vhd"] and not window.head.startswith(b"conectix"):
        return False
    return any(window.head[offset : offset + len(magic)] == magic for offset, magic, _ in _TABLE_SIGNATURES)
