"""Opening a VHDX: from the file identifier to a disk, and for a differencing one to its parent."""

from collections.abc import Iterator
from dataclasses import dataclass

from diskfs_formats.driver import AbsentParent, Match, ProbeWindow, RelatedFiles
from diskfs_formats.errors import CorruptImage, DiskfsError, ParentUnavailable
from diskfs_formats.findings import Finding, Severity
from diskfs_formats.source import ByteSource
from diskfs_formats.vhdx.checks import check_blocks
from diskfs_formats.vhdx.headers import Header, read_current_header
from diskfs_formats.vhdx.image import VhdxImage
from diskfs_formats.vhdx.log import replay_log
from diskfs_formats.vhdx.metadata import Metadata, read_metadata
from diskfs_formats.vhdx.parent import ParentLocator
from diskfs_formats.vhdx.regions import Regions, read_regions
from diskfs_formats.vhdx.structures import SIGNATURE


class VhdxDriver:
    """Reads fixed, dynamic and differencing VHDX files, those that were not closed cleanly included."""

    name = "vhdx"

    def probe(self, window: ProbeWindow, /) -> Match:
        return Match.SIGNATURE if window.head.startswith(SIGNATURE) else Match.NO

    def open(self, source: ByteSource, related: RelatedFiles, /) -> VhdxImage:
        layer = _Layer.of(source)
        locator = layer.metadata.parent_locator
        if locator is None:
            return layer.image(None)
        parent = layer.open_parent(locator, related)
        try:
            return layer.image(parent)
        except BaseException:
            parent.close()
            raise

    def check(self, source: ByteSource, related: RelatedFiles, /) -> Iterator[Finding]:
        """Examine this file. Of its parent, only whether it is the right one: it is a file to check by itself."""
        layer = _Layer.of(source)
        if layer.metadata.parent_locator is not None:
            try:
                layer.open_parent(layer.metadata.parent_locator, related).close()
            except DiskfsError as error:
                layer.findings.append(Finding("vhdx-parent", Severity.ERROR, str(error)))
        image = layer.image(None)
        yield from image.info.findings
        yield from check_blocks(image)


@dataclass(frozen=True, slots=True)
class _Layer:
    """One file of a chain, with its structures read and checked; `file` is the file after the log's replay."""

    file: ByteSource
    header: Header
    regions: Regions
    metadata: Metadata
    findings: list[Finding]

    @classmethod
    def of(cls, source: ByteSource) -> "_Layer":
        findings: list[Finding] = []
        header = read_current_header(source, findings)
        file = replay_log(source, header, findings)
        regions = read_regions(file, header, findings)
        return cls(file, header, regions, read_metadata(file, regions.metadata), findings)

    def image(self, parent: VhdxImage | AbsentParent | None) -> VhdxImage:
        return VhdxImage(self.file, self.header, self.regions, self.metadata, findings=self.findings, parent=parent)

    def open_parent(self, locator: ParentLocator, related: RelatedFiles) -> VhdxImage | AbsentParent:
        """Open the parent and make sure that it is the disk, in the state, that this one was made from."""
        name = self.file.name
        if self.header.data_write_guid in locator.linkages:
            raise CorruptImage(f"{name}: it names itself, {self.header.data_write_guid}, as its parent")
        parent = related.open_parent(locator.file_names, VhdxDriver.name)
        if isinstance(parent, AbsentParent):
            return parent
        try:
            if not isinstance(parent, VhdxImage):
                raise ParentUnavailable(f"{name}: its parent {parent.name} is no VHDX")
            if parent.data_write_guid not in locator.linkages:
                expected = " or ".join(str(linkage) for linkage in locator.linkages)
                raise ParentUnavailable(
                    f"{name}: {parent.name} is not its parent, or was changed since: its DataWriteGuid is "
                    f"{parent.data_write_guid}, expected {expected}"
                )
            if parent.info.sector_size != self.metadata.logical_sector_size:
                raise ParentUnavailable(
                    f"{name}: its logical sectors have {self.metadata.logical_sector_size} bytes, those of its parent "
                    f"{parent.name} have {parent.info.sector_size}"
                )
        except BaseException:
            parent.close()
            raise
        return parent
