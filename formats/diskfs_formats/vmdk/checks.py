"""What `diskfs verify` examines in a sparse VMDK: every table, every grain, the redundant tables."""

from collections.abc import Iterator

from diskfs_formats.binary import EntryTable
from diskfs_formats.errors import DiskfsError
from diskfs_formats.findings import Finding, Severity
from diskfs_formats.source import ByteSource
from diskfs_formats.units import check_units, limited
from diskfs_formats.vmdk.header import SECTOR, SparseHeader
from diskfs_formats.vmdk.sparse import SparseExtent, open_directory, read_table


def check_sparse(source: ByteSource, header: SparseHeader, image: SparseExtent) -> Iterator[Finding]:
    """Yield a finding for every table and grain that cannot be read, and for redundant tables that differ."""
    if header.has_redundant_tables:
        yield from limited(_compare_redundant(source, header), source.name, "vmdk-redundant-table")
    yield from check_units(image, "vmdk-grain")


def _compare_redundant(source: ByteSource, header: SparseHeader) -> Iterator[Finding]:
    try:
        first = open_directory(source, header, header.gd_offset, "grain directory")
        second = open_directory(source, header, header.rgd_offset, "redundant grain directory")
    except DiskfsError as error:
        yield Finding("vmdk-redundant-directory", Severity.ERROR, str(error))
        return
    for number in range(header.table_count):
        try:
            if _table_bytes(source, header, first, number) != _table_bytes(source, header, second, number):
                yield Finding(
                    "vmdk-redundant-table",
                    Severity.ERROR,
                    f"{source.name}: grain table {number} and its redundant copy differ: sectors "
                    f"{first[number]:#x} and {second[number]:#x}",
                    "one of the two is damaged; the first is the one that is read",
                )
        except DiskfsError as error:
            yield Finding("vmdk-redundant-table", Severity.ERROR, str(error))


def _table_bytes(source: ByteSource, header: SparseHeader, directory: EntryTable, number: int) -> bytes:
    sector = directory[number]
    return read_table(source, header, number, sector * SECTOR).tobytes() if sector else b""
