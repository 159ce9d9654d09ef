"""Opening a VMDK: from the header or the descriptor to a disk, its extents and its parent."""

import contextlib
import dataclasses
from collections.abc import Iterator

from diskfs_formats.driver import AbsentParent, ImageInfo, Match, ProbeWindow, RelatedFiles
from diskfs_formats.errors import CorruptImage, DiskfsError, UnsupportedFeature
from diskfs_formats.findings import Finding, Severity
from diskfs_formats.reading import ENGINE
from diskfs_formats.source import ByteSource
from diskfs_formats.text import printable
from diskfs_formats.vmdk.checks import check_extents, check_grains
from diskfs_formats.vmdk.cowd import COWD_MAGIC
from diskfs_formats.vmdk.descriptor import MAX_DESCRIPTOR_SIZE, Descriptor, is_descriptor, parse_descriptor
from diskfs_formats.vmdk.extents import (
    ExtentFiles,
    open_extents,
    read_complete_header,
    read_embedded_descriptor,
    require_plain,
)
from diskfs_formats.vmdk.header import MAGIC, SECTOR, UNFINISHED_MAGIC, SparseHeader
from diskfs_formats.vmdk.image import SplitImage, VmdkImage
from diskfs_formats.vmdk.parent import open_parent
from diskfs_formats.vmdk.sesparse import SESPARSE_MAGIC
from diskfs_formats.vmdk.sparse import SparseExtent


class VmdkDriver:
    """Reads VMDK: one file with its descriptor inside, or a descriptor with its extents beside it."""

    name = "vmdk"

    def probe(self, window: ProbeWindow, /) -> Match:
        magic = window.head[:4]
        if magic in (MAGIC, UNFINISHED_MAGIC, COWD_MAGIC) or window.head[:8] == SESPARSE_MAGIC:
            return Match.SIGNATURE
        return Match.SIGNATURE if is_descriptor(window.head) else Match.NO

    def open(self, source: ByteSource, related: RelatedFiles, /) -> VmdkImage:
        with contextlib.ExitStack() as undo:
            layer = _Layer.of(source, related, undo)
            parent = layer.open_parent(related)
            if parent is not None:
                undo.callback(parent.close)
            image = layer.image(parent)
            undo.pop_all()
            return image

    def check(self, source: ByteSource, related: RelatedFiles, /) -> Iterator[Finding]:
        """Examine this disk and its extents. Of its parent, only whether it is the right one: it is a disk to check by
        itself.
        """
        with contextlib.ExitStack() as undo:
            layer = _Layer.of(source, related, undo)
            try:
                parent = layer.open_parent(related)
                if parent is not None:
                    parent.close()
            except DiskfsError as error:
                layer.findings.append(Finding("vmdk-parent", Severity.ERROR, str(error)))
            image = layer.image(None)
            yield from image.info.findings
            if isinstance(image, SparseExtent):
                yield from check_grains(image)
            elif layer.files is not None:
                for file in layer.files.sources.values():
                    undo.callback(ENGINE.cache.forget, file)
                yield from check_extents(layer.files)


@dataclasses.dataclass(frozen=True, slots=True)
class _Layer:
    """One disk of a chain, with its structures read and checked: `header` if it is all in one file, else `files`."""

    source: ByteSource
    descriptor: Descriptor | None
    header: SparseHeader | None
    files: ExtentFiles | None
    findings: list[Finding]

    @classmethod
    def of(cls, source: ByteSource, related: RelatedFiles, undo: contextlib.ExitStack) -> "_Layer":
        magic = source.read_at(0, min(8, source.size))
        if magic[:4] in (MAGIC, UNFINISHED_MAGIC):
            return cls._hosted(source, related, undo)
        if magic[:4] == COWD_MAGIC:
            raise _extent_alone(source, "a vmfsSparse (COWD) extent", "-delta")
        if magic == SESPARSE_MAGIC:
            raise _extent_alone(source, "a seSparse extent", "-sesparse")
        if source.size > MAX_DESCRIPTOR_SIZE:
            raise CorruptImage(
                f"{source.name}: it begins as no VMDK extent does, and for a descriptor, of at most "
                f"{MAX_DESCRIPTOR_SIZE} bytes, it is too long: {source.size} bytes"
            )
        descriptor = parse_descriptor(source.read_at(0, source.size), source.name)
        files = open_extents(source, descriptor, related, undo)
        return cls(source, descriptor, None, files, files.findings)

    @classmethod
    def _hosted(cls, source: ByteSource, related: RelatedFiles, undo: contextlib.ExitStack) -> "_Layer":
        findings: list[Finding] = []
        header = read_complete_header(source, findings)
        descriptor = read_embedded_descriptor(source, header)
        if header.capacity == 0:
            if descriptor is None:
                raise CorruptImage(f"{source.name}: the sparse header's capacity is 0, and no descriptor is inside")
            # ESX wraps the descriptor of a disk in such a header; the grains are in the files that it lists.
            files = open_extents(source, descriptor, related, undo)
            return cls(source, descriptor, None, files, files.findings)
        if descriptor is not None:
            _require_alone(source.name, descriptor)
        else:
            findings.append(
                Finding(
                    "vmdk-no-descriptor",
                    Severity.WARNING,
                    f"{source.name}: no descriptor inside: the file may be one extent of a larger disk",
                    "open the descriptor file (the .vmdk without -s001) instead",
                )
            )
        return cls(source, descriptor, header, None, findings)

    def open_parent(self, related: RelatedFiles) -> VmdkImage | AbsentParent | None:
        if self.descriptor is None or not self.descriptor.has_parent:
            return None
        return open_parent(self.source.name, self.descriptor, related, self.findings)

    def image(self, parent: VmdkImage | AbsentParent | None) -> VmdkImage:
        cid = self.descriptor.cid if self.descriptor is not None else None
        if self.header is not None:
            return SparseExtent(self.source, self.header, self._info(self.header), parent=parent, cid=cid)
        files = self.files
        assert files is not None
        info = ImageInfo(
            format="vmdk",
            variant=self._variant("custom"),
            virtual_size=files.virtual_size,
            sector_size=self._sector_size,
            unit_size=files.unit_size,
            compressed=files.compressed,
            has_parent=self._has_parent,
            findings=tuple(self.findings),
        )
        sources = (self.source, *files.sources.values())
        return SplitImage(self.source.name, info, files.segments, sources, parent=parent, cid=cid)

    def _info(self, header: SparseHeader) -> ImageInfo:
        return ImageInfo(
            format="vmdk",
            variant=self._variant("streamOptimized" if header.compressed else "monolithicSparse"),
            virtual_size=self._virtual_size(header),
            sector_size=self._sector_size,
            unit_size=header.grain_size,
            compressed=header.compressed,
            has_parent=self._has_parent,
            findings=tuple(self.findings),
        )

    @property
    def _sector_size(self) -> int:
        return self.descriptor.sector_size if self.descriptor is not None else SECTOR

    def _variant(self, otherwise: str) -> str:
        return printable((self.descriptor.create_type if self.descriptor else "") or otherwise, 40)

    @property
    def _has_parent(self) -> bool:
        return self.descriptor is not None and self.descriptor.has_parent

    def _virtual_size(self, header: SparseHeader) -> int:
        """Return a single file's size in bytes: the extent line's, which VirtualBox keeps exact while it rounds the
        capacity.
        """
        if self.descriptor is None or not self.descriptor.extents:
            return header.capacity * SECTOR
        sectors = self.descriptor.sectors
        if sectors == header.capacity:
            return header.capacity * SECTOR
        if 0 < sectors < header.capacity:
            return sectors * SECTOR
        self.findings.append(
            Finding(
                "vmdk-size-disagrees",
                Severity.WARNING,
                f"{self.source.name}: the extent line says {sectors} sectors, the header {header.capacity}; the header "
                "is used",
            )
        )
        return header.capacity * SECTOR


def _require_alone(name: str, descriptor: Descriptor) -> None:
    """Refuse a descriptor, inside a file with grains, that describes more than those."""
    require_plain(name, descriptor)
    # The name in its one line means the file itself, whatever it says.
    if len(descriptor.extents) > 1 or any(line.type != "SPARSE" for line in descriptor.extents):
        kinds = ", ".join(printable(line.type, 20) for line in descriptor.extents[:4])
        raise UnsupportedFeature(
            f"{name}: the embedded descriptor lists extents other than this file ({kinds}), although the file has "
            "grains of its own; this is not read"
        )


def _extent_alone(source: ByteSource, kind: str, suffix: str) -> UnsupportedFeature:
    return UnsupportedFeature(
        f"{source.name}: it is {kind}, and only its descriptor says what disk it is of; open the descriptor (the "
        f".vmdk without {suffix}) instead"
    )
