"""What `diskfs verify` examines in a qcow2 image: every table, every cluster, and that none is used twice.

Refcounts serve writers and are not examined; `qemu-img check` does.
"""

from collections.abc import Iterator

from diskfs_formats.errors import DiskfsError
from diskfs_formats.findings import Finding, Severity
from diskfs_formats.qcow2.entries import COMPRESSED, L1_RESERVED, NOT_COPIED, OFFSET_MASK
from diskfs_formats.qcow2.image import Qcow2Image
from diskfs_formats.units import MAX_FINDINGS, check_units, limited

MAX_CLUSTERS = 1 << 28
"""Clusters of a file whose use is kept track of, a bit each: 32 MiB of memory for 16 TiB of 64 KiB clusters."""


def check_clusters(image: Qcow2Image) -> Iterator[Finding]:
    """Yield a finding for every table and cluster that cannot be read, and for every one that has two users."""
    file_clusters = -(-image.file_size // image.header.cluster_size)
    if file_clusters > MAX_CLUSTERS:
        yield Finding(
            "qcow2-overlap",
            Severity.INFO,
            f"{image.name}: the file has over {MAX_CLUSTERS} clusters: whether any is used twice was not examined",
        )
    else:
        users = _Users(image, file_clusters)
        count = 0
        for count, finding in enumerate(limited(users.findings(), image.name, "qcow2-overlap"), 1):  # noqa: B007
            yield finding
        if users.are_tables_shared or count > MAX_FINDINGS:
            # A few tables or clusters that stand for many would be read again and again.
            yield Finding(
                "qcow2-cluster", Severity.ERROR, f"{image.name}: the clusters were not read: tables are damaged"
            )
            return
    yield from check_units(image, "qcow2-cluster")


class _Users:
    """Which clusters of the file have a user so far."""

    def __init__(self, image: Qcow2Image, file_clusters: int) -> None:
        self.are_tables_shared = False
        self._image = image
        self._cluster_size = image.header.cluster_size
        self._used = bytearray(-(-file_clusters // 8))

    def findings(self) -> Iterator[Finding]:
        """Yield what has two users. If that is tables, their clusters are not looked at."""
        yield from self._tables()
        if not self.are_tables_shared:
            yield from self._clusters()

    def _tables(self) -> Iterator[Finding]:
        """Claim the L2 tables."""
        for number in range(self._image.l1.count):
            entry = self._image.l1[number]
            offset = entry & OFFSET_MASK
            if offset and not entry & L1_RESERVED and not self._claim(offset):
                self.are_tables_shared = True
                yield self._shared(f"the L2 table of L1 entry {number}", offset)

    def _clusters(self) -> Iterator[Finding]:
        """Claim the clusters that are not compressed; compressed ones share clusters, and must differ in offset.

        A table or an entry that cannot be read is passed over here and found when its clusters are read.
        """
        image = self._image
        per_slice, per_table, width = image.slice_entries, image.slices_per_table, image.layout.words
        last = -(-image.header.clusters // per_slice)
        for table in range(image.l1.count):
            if not image.l1[table] & NOT_COPIED:
                continue
            for number in range(table * per_table, min((table + 1) * per_table, last)):
                try:
                    entries = image.l2_slice(number).words[::width]
                except DiskfsError:
                    continue
                records: set[int] = set()
                for index, entry in enumerate(entries):
                    if entry & COMPRESSED:
                        offset = image.layout.compressed_offset(entry)
                        is_first = offset not in records
                        records.add(offset)
                    else:
                        offset = entry & OFFSET_MASK
                        is_first = not offset or self._claim(offset)
                    if not is_first:
                        yield self._shared(f"cluster {number * per_slice + index}", offset)

    def _claim(self, offset: int) -> bool:
        """Note one user of the cluster at `offset`; return False if it has one already."""
        byte, bit = divmod(offset // self._cluster_size, 8)
        if byte >= len(self._used):
            return True
        if self._used[byte] >> bit & 1:
            return False
        self._used[byte] |= 1 << bit
        return True

    def _shared(self, what: str, offset: int) -> Finding:
        return Finding(
            "qcow2-overlap",
            Severity.ERROR,
            f"{self._image.name}: {what} is at host offset {offset:#x}, which another table or cluster uses too",
            "one of the two was overwritten by the other; restore the image from a copy",
        )
