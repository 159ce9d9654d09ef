"""Opening a qcow2 image: from the header to a disk, its backing file included."""

from collections.abc import Iterator

from diskfs_formats.driver import DiskImage, ImageInfo, Match, ProbeWindow, RelatedFiles
from diskfs_formats.errors import DiskfsError, UnsafeReference
from diskfs_formats.findings import Finding, Severity
from diskfs_formats.qcow2.checks import check_clusters
from diskfs_formats.qcow2.header import DIRTY, MAGIC, Header, read_header
from diskfs_formats.qcow2.image import Qcow2Image
from diskfs_formats.source import ByteSource
from diskfs_formats.text import printable

_SECTOR_SIZE = 512
_DEFAULT_BACKING_FORMAT = "raw"
_FORMAT_NAMES = {"vpc": "vhd"}
"""qemu's names of formats where ours differ."""


class Qcow2Driver:
    """Reads qcow2 files of version 2 and 3, and the backing files beside them."""

    name = "qcow2"

    def probe(self, window: ProbeWindow, /) -> Match:
        return Match.SIGNATURE if window.head.startswith(MAGIC) else Match.NO

    def open(self, source: ByteSource, related: RelatedFiles, /) -> Qcow2Image:
        header = read_header(source)
        if header.backing_file is None:
            return _image(source, header, None)
        parent = _open_parent(source, header, related)
        try:
            return _image(source, header, parent)
        except BaseException:
            parent.close()
            raise

    def check(self, source: ByteSource, related: RelatedFiles, /) -> Iterator[Finding]:
        """Examine this file. Of its backing file, only whether it is there: it is a file to check by itself."""
        header = read_header(source)
        if header.backing_file is not None:
            try:
                _open_parent(source, header, related).close()
            except DiskfsError as error:
                yield Finding("qcow2-parent", Severity.ERROR, str(error))
        image = _image(source, header, None)
        yield from image.info.findings
        yield from check_clusters(image)


def _image(source: ByteSource, header: Header, parent: DiskImage | None) -> Qcow2Image:
    info = ImageInfo(
        format=Qcow2Driver.name,
        variant=f"v{header.version}",
        virtual_size=header.size,
        unit_size=header.cluster_size,
        has_parent=header.backing_file is not None,
        findings=tuple(_notices(source, header)),
    )
    return Qcow2Image(source, header, info, parent)


def _open_parent(source: ByteSource, header: Header, related: RelatedFiles) -> DiskImage:
    assert header.backing_file is not None
    _require_bare_name(source, header.backing_file)
    backing_format = header.backing_format or _DEFAULT_BACKING_FORMAT
    return related.open_parent([header.backing_file], _FORMAT_NAMES.get(backing_format, backing_format))


def _require_bare_name(source: ByteSource, name: str) -> None:
    """Refuse a backing file that is anything but a file beside the image, before anything is opened.

    qemu takes whatever stands before a colon for a protocol (json:, nbd:, https:), so a colon is never part of a name.
    """
    problem = (
        "it leads to another folder"
        if name in {".", ".."} or "/" in name or "\\" in name
        else "it has a protocol, as qemu reads it"
        if ":" in name
        else "it holds a control character"
        if any(ord(character) < 32 for character in name)
        else None
    )
    if problem:
        raise UnsafeReference(
            f"{source.name}: the backing file is {printable(name)!r}: {problem}; only a file beside the image may be "
            "opened; put it there and name it with qemu-img rebase -u -b NAME -F FORMAT on a copy of the image"
        )


def _notices(source: ByteSource, header: Header) -> Iterator[Finding]:
    if header.incompatible_features & DIRTY:
        yield Finding(
            "qcow2-dirty",
            Severity.WARNING,
            f"{source.name}: the header says that the image was not closed cleanly: its refcounts may be wrong, which "
            "reading does not depend on",
            "run diskfs verify",
        )
    if header.nb_snapshots:
        yield Finding(
            "qcow2-snapshots",
            Severity.INFO,
            f"{source.name}: it holds {header.nb_snapshots} internal snapshots, which are not shown: the disk is as it "
            "is now",
            "qemu-img convert -l SNAPSHOT extracts one",
        )
    if header.backing_file is not None and header.backing_format is None:
        yield Finding(
            "qcow2-backing-format",
            Severity.WARNING,
            f"{source.name}: it does not say the format of its backing file {printable(header.backing_file)!r}, which "
            f"is read as {_DEFAULT_BACKING_FORMAT}: the format is never guessed, because a guest could have written "
            "another's header",
            "state it with qemu-img rebase -u -b NAME -F FORMAT on a copy of the image",
        )
    if header.size % _SECTOR_SIZE:
        yield Finding(
            "qcow2-partial-sector",
            Severity.WARNING,
            f"{source.name}: {header.size} bytes are not a whole number of {_SECTOR_SIZE}-byte sectors; qemu does not "
            "show the last ones",
        )
