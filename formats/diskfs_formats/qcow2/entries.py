"""What the entries of L1 and L2 tables mean.

Specification: QEMU, docs/interop/qcow2.txt, "Cluster mapping" and "Extended L2 Entries". Entries are 64-bit; an
extended L2 entry is followed by the bitmaps of its cluster's 32 subclusters.
"""

from diskfs_formats.extents import ExtentKind
from diskfs_formats.qcow2.header import Header

COPIED = 1 << 63
"""The refcount is one: of use to a writer only."""
COMPRESSED = 1 << 62
ZERO = 1 << 0
OFFSET_MASK = 0x00FFFFFFFFFFFE00
NOT_COPIED = COPIED - 1

L1_RESERVED = NOT_COPIED & ~OFFSET_MASK
"""Bits 0 to 8 and 56 to 62."""
_L2_RESERVED = L1_RESERVED & ~(COMPRESSED | ZERO)

SUBCLUSTERS = 32
ALL_SUBCLUSTERS = (1 << SUBCLUSTERS) - 1
_UNIFORM = {ExtentKind.DATA: ALL_SUBCLUSTERS, ExtentKind.ZERO: ALL_SUBCLUSTERS << SUBCLUSTERS, ExtentKind.HOLE: 0}

SECTOR = 512


class BadEntry(ValueError):
    """An L2 entry means nothing; the text says why."""


class EntryLayout:
    """How the L2 entries of one image are read."""

    def __init__(self, header: Header) -> None:
        self.is_extended = header.has_extended_l2
        self.words = header.l2_entry_size // 8
        """64-bit words of an entry."""
        self.units = SUBCLUSTERS if self.is_extended else 1
        """Units of a cluster that may differ in kind."""
        self.unit_size = header.cluster_size // self.units
        self._cluster_size = header.cluster_size
        has_zero_flag = header.version >= 3 and not self.is_extended
        self._reserved = _L2_RESERVED if has_zero_flag else _L2_RESERVED | ZERO
        self._offset_bits = 62 - (header.cluster_bits - 8)

    def compressed_offset(self, entry: int) -> int:
        """Return the host offset of a compressed cluster, precise to the byte."""
        return entry & ((1 << self._offset_bits) - 1)

    def compressed(self, entry: int, bitmap: int) -> tuple[int, int]:
        """Return (host offset, stored bytes at most) of a compressed cluster; raises BadEntry."""
        if bitmap:
            raise BadEntry(f"its subcluster bitmap is {bitmap:#018x}, expected 0 for a compressed cluster")
        offset = self.compressed_offset(entry)
        sectors = (entry & (COMPRESSED - 1)) >> self._offset_bits
        return offset, (sectors + 1) * SECTOR - offset % SECTOR

    def run(self, entry: int, bitmap: int, unit: int) -> tuple[ExtentKind, int, int, int]:
        """Return (kind, host offset of the cluster, first unit, units) of the run that begins with unit `unit` of a
        cluster that is not compressed; raises BadEntry. The host offset is 0 if the cluster has none.
        """
        offset = entry & OFFSET_MASK
        if entry & self._reserved:
            raise BadEntry(f"its reserved bits {entry & self._reserved:#018x} are set")
        if offset % self._cluster_size:
            raise BadEntry(f"its host offset is {offset:#x}, expected a multiple of the cluster size")
        if not self.is_extended:
            kind = ExtentKind.ZERO if entry & ZERO else ExtentKind.DATA if offset else ExtentKind.HOLE
            return kind, offset, 0, 1
        allocated, zero = bitmap & ALL_SUBCLUSTERS, bitmap >> SUBCLUSTERS
        if allocated & zero:
            raise BadEntry(f"its subcluster bitmap is {bitmap:#018x}: subclusters are allocated and zero at once")
        if allocated and not offset:
            raise BadEntry(f"its subcluster bitmap is {bitmap:#018x}: subclusters are allocated and have no place")
        for kind, bits in ((ExtentKind.DATA, allocated), (ExtentKind.ZERO, zero)):
            if bits >> unit & 1:
                return kind, offset, unit, _ones(bits >> unit)
        return ExtentKind.HOLE, offset, unit, _ones((ALL_SUBCLUSTERS & ~(allocated | zero)) >> unit)

    def uniform_bitmap(self, kind: ExtentKind) -> int:
        """Return the bitmap of a cluster that is of one kind throughout."""
        return _UNIFORM[kind] if self.is_extended else 0


def _ones(bits: int) -> int:
    """Return how many of the lowest bits are set, up to the first that is not."""
    return (~bits & (bits + 1)).bit_length() - 1
