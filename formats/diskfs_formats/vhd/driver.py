"""Opening a VHD: from the footer to a disk, and for a differencing one to its parent."""

import dataclasses
from collections.abc import Iterator

from diskfs_formats.driver import AbsentParent, ImageInfo, Match, ProbeWindow, RelatedFiles
from diskfs_formats.errors import DiskfsError, TruncatedImage
from diskfs_formats.findings import Finding, Severity
from diskfs_formats.source import ByteSource
from diskfs_formats.vhd.checks import check_blocks
from diskfs_formats.vhd.footer import COOKIE, DiskType, Footer, examine_footer, is_footer_at_end, read_footer
from diskfs_formats.vhd.header import DynamicHeader, read_dynamic_header
from diskfs_formats.vhd.image import DifferencingImage, DynamicImage, FixedImage, VhdImage
from diskfs_formats.vhd.parent import open_parent


class VhdDriver:
    """Reads fixed, dynamic and differencing VHD files."""

    name = "vhd"

    def probe(self, window: ProbeWindow, /) -> Match:
        is_vhd = is_footer_at_end(window.tail) or window.head.startswith(COOKIE)
        return Match.SIGNATURE if is_vhd else Match.NO

    def open(self, source: ByteSource, related: RelatedFiles, /) -> VhdImage:
        layer = _Layer.of(source)
        parent = layer.open_parent(related) if layer.has_parent else None
        return layer.image(parent)

    def check(self, source: ByteSource, related: RelatedFiles, /) -> Iterator[Finding]:
        """Examine this file. Of its parent, only whether it is the right one: it is a file to check by itself."""
        layer = _Layer.of(source)
        if layer.has_parent:
            try:
                layer.open_parent(related).close()
            except DiskfsError as error:
                layer.findings.append(Finding("vhd-parent", Severity.ERROR, str(error)))
        image = layer.image(None)
        yield from image.info.findings
        if isinstance(image, DynamicImage):
            yield from check_blocks(image, source.size)


@dataclasses.dataclass(frozen=True, slots=True)
class _Layer:
    """One file of a chain, with its structures read and checked; `header` is that of a disk in blocks."""

    source: ByteSource
    footer: Footer
    header: DynamicHeader | None
    findings: list[Finding]

    @classmethod
    def of(cls, source: ByteSource) -> "_Layer":
        findings: list[Finding] = []
        footer = read_footer(source, findings)
        findings.extend(examine_footer(source, footer))
        if footer.disk_type is not DiskType.FIXED:
            return cls(source, footer, read_dynamic_header(source, footer), findings)
        if footer.virtual_size > footer.offset:
            raise TruncatedImage(
                f"{source.name}: a fixed disk of {footer.virtual_size} bytes, and its footer is at offset "
                f"{footer.offset:#x}: the file is incomplete"
            )
        if footer.virtual_size < footer.offset:
            findings.append(
                Finding(
                    "vhd-size",
                    Severity.WARNING,
                    f"{source.name}: a fixed disk of {footer.virtual_size} bytes, and its footer is at offset "
                    f"{footer.offset:#x}; what lies between is not part of the disk",
                )
            )
        return cls(source, footer, None, findings)

    @property
    def has_parent(self) -> bool:
        return self.footer.disk_type is DiskType.DIFFERENCING

    def open_parent(self, related: RelatedFiles) -> VhdImage | AbsentParent:
        assert self.header is not None
        return open_parent(self.source, related, self.footer, self.header, self.findings)

    def image(self, parent: VhdImage | AbsentParent | None) -> VhdImage:
        info = ImageInfo(
            format="vhd",
            variant=self.footer.disk_type.name.lower(),
            virtual_size=self.footer.virtual_size,
            unit_size=self.header.block_size if self.header else 0,
            has_parent=self.has_parent,
            findings=tuple(self.findings),
        )
        if self.header is None:
            return FixedImage(self.source, self.footer, info)
        kind = DifferencingImage if self.has_parent else DynamicImage
        return kind(self.source, self.footer, self.header, info, parent)
