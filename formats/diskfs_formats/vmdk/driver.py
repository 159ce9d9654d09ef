"""Opening a VMDK: from the header or the descriptor to a disk."""

from collections.abc import Iterator

from diskfs_formats.driver import ImageInfo, Match, ProbeWindow, RelatedFiles
from diskfs_formats.errors import CorruptImage, TruncatedImage, UnsupportedFeature
from diskfs_formats.findings import Finding, Severity
from diskfs_formats.source import ByteSource
from diskfs_formats.text import printable
from diskfs_formats.vmdk.checks import check_sparse
from diskfs_formats.vmdk.descriptor import (
    MAX_DESCRIPTOR_SIZE,
    NO_PARENT,
    Descriptor,
    is_descriptor,
    parse_descriptor,
)
from diskfs_formats.vmdk.header import (
    GD_AT_END,
    MAGIC,
    SECTOR,
    UNFINISHED_MAGIC,
    SparseHeader,
    read_footer,
    read_header,
)
from diskfs_formats.vmdk.sparse import SparseExtent

COWD_MAGIC = b"COWD"
SESPARSE_MAGIC = (0xCAFEBABE).to_bytes(8, "little")


class VmdkDriver:
    """Reads sparse and stream-optimized VMDK files that stand alone."""

    name = "vmdk"

    def probe(self, window: ProbeWindow, /) -> Match:
        magic = window.head[:4]
        if magic in (MAGIC, UNFINISHED_MAGIC, COWD_MAGIC) or window.head[:8] == SESPARSE_MAGIC:
            return Match.SIGNATURE
        return Match.SIGNATURE if is_descriptor(window.head) else Match.NO

    def open(self, source: ByteSource, related: RelatedFiles, /) -> SparseExtent:  # noqa: ARG002 - no parents yet
        magic = source.read_at(0, min(8, source.size))
        if magic[:4] in (MAGIC, UNFINISHED_MAGIC):
            return _open_sparse(source)
        if magic[:4] == COWD_MAGIC:
            raise UnsupportedFeature(f"{source.name}: a VMDK extent of type vmfsSparse (COWD) is not read yet")
        if magic == SESPARSE_MAGIC:
            raise UnsupportedFeature(f"{source.name}: a VMDK extent of type seSparse is not read yet")
        descriptor = parse_descriptor(source.read_at(0, min(source.size, MAX_DESCRIPTOR_SIZE)), source.name)
        kind = printable(descriptor.create_type, 40) or "unknown"
        raise UnsupportedFeature(
            f"{source.name}: a VMDK descriptor of type {kind} whose extents are files of their own is not read yet"
        )

    def check(self, source: ByteSource, related: RelatedFiles, /) -> Iterator[Finding]:
        image = self.open(source, related)
        yield from image.info.findings
        yield from check_sparse(source, image.header, image)


def _open_sparse(source: ByteSource) -> SparseExtent:
    header = read_header(source)
    if header.capacity == 0:
        if header.descriptor_offset:
            raise UnsupportedFeature(
                f"{source.name}: the sparse header's capacity is 0 and its descriptor names other files: "
                "this form of VMDK is not read yet"
            )
        raise CorruptImage(f"{source.name}: the sparse header's capacity is 0")
    if header.overhead * SECTOR > source.size:
        raise TruncatedImage(
            f"{source.name}: the sparse header's overHead ends at {header.overhead * SECTOR:#x}, the file at "
            f"{source.size:#x}: the file is incomplete"
        )
    findings: list[Finding] = []
    complete = read_footer(source, header) if header.gd_offset == GD_AT_END else header
    descriptor = _embedded_descriptor(source, header, findings)
    if header.unclean_shutdown:
        findings.append(
            Finding(
                "vmdk-unclean-shutdown",
                Severity.WARNING,
                f"{source.name}: the header says that the disk was not closed cleanly",
                "run diskfs verify",
            )
        )
    variant = (descriptor.create_type if descriptor else "") or (
        "streamOptimized" if header.compressed else "monolithicSparse"
    )
    info = ImageInfo(
        format="vmdk",
        variant=printable(variant, 40),
        virtual_size=_virtual_size(source, header, descriptor, findings),
        unit_size=header.grain_size,
        compressed=header.compressed,
        findings=tuple(findings),
    )
    return SparseExtent(source, complete, info)


def _embedded_descriptor(source: ByteSource, header: SparseHeader, findings: list[Finding]) -> Descriptor | None:
    if header.descriptor_offset:
        offset, size = header.descriptor_offset * SECTOR, header.descriptor_size * SECTOR
        if offset + size > source.size:
            raise TruncatedImage(
                f"{source.name}: the descriptor at offset {offset:#x} is {size} bytes long, the file ends at "
                f"{source.size:#x}: the file is incomplete"
            )
        if size > MAX_DESCRIPTOR_SIZE:
            raise CorruptImage(
                f"{source.name}: the descriptor is {size} bytes long, at most {MAX_DESCRIPTOR_SIZE} are expected"
            )
        descriptor = parse_descriptor(source.read_at(offset, size), source.name)
        if descriptor.values or descriptor.extents:
            _require_alone(source, descriptor)
            return descriptor
    findings.append(
        Finding(
            "vmdk-no-descriptor",
            Severity.WARNING,
            f"{source.name}: no descriptor inside: the file may be one extent of a larger disk",
            "open the descriptor file (the .vmdk without -s001) instead",
        )
    )
    return None


def _require_alone(source: ByteSource, descriptor: Descriptor) -> None:
    """Refuse what would need another file."""
    # Without parentCID a parent's name is all that tells a delta, whose holes are not zeroes.
    if descriptor.parent_cid != NO_PARENT or ("parentcid" not in descriptor.values and descriptor.parent_file_name):
        hint = printable(descriptor.parent_file_name)
        raise UnsupportedFeature(
            f"{source.name}: the disk is a delta of a parent ({hint!r}, CID {descriptor.parent_cid:08x}); "
            "delta disks are not read yet"
        )
    if len(descriptor.extents) > 1 or any(line.type != "SPARSE" for line in descriptor.extents):
        kinds = ", ".join(printable(line.type, 20) for line in descriptor.extents[:4])
        raise UnsupportedFeature(
            f"{source.name}: the embedded descriptor lists extents other than this file ({kinds}): not read yet"
        )


def _virtual_size(
    source: ByteSource, header: SparseHeader, descriptor: Descriptor | None, findings: list[Finding]
) -> int:
    """Return the disk's size in bytes: the extent line's, which VirtualBox keeps exact while it rounds the capacity."""
    if descriptor is None or not descriptor.extents:
        return header.capacity * SECTOR
    sectors = descriptor.sectors
    if sectors == header.capacity:
        return header.capacity * SECTOR
    if 0 < sectors < header.capacity:
        return sectors * SECTOR
    findings.append(
        Finding(
            "vmdk-size-disagrees",
            Severity.WARNING,
            f"{source.name}: the extent line says {sectors} sectors, the header {header.capacity}; the header is used",
        )
    )
    return header.capacity * SECTOR
