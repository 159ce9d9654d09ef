"""Which file system, or other use, a partition holds, told by its signature as blkid tells it.

Only what identifies: nothing is mounted and nothing behind the superblock is looked at. The layouts are those of each
file system's own header: little-endian unless said otherwise.
"""

from collections.abc import Callable

from construct import Bytes, Int8ul, Int16ul, Int32ul, Int64ul, Padding, Struct

from diskfs_formats.binary import is_power_of_two
from diskfs_formats.source import ByteSource, read_ranges

HEAD_SIZE = 68 << 10
"""Bytes from the start that hold every signature but two of Linux RAID; the last is reiserfs's, behind 64 KiB."""

FAT_BOOT_SECTOR = Struct(
    "BS_jmpBoot" / Bytes(3),
    "BS_OEMName" / Bytes(8),
    "BPB_BytsPerSec" / Int16ul,
    "BPB_SecPerClus" / Int8ul,
    "BPB_RsvdSecCnt" / Int16ul,
    "BPB_NumFATs" / Int8ul,
    "BPB_RootEntCnt" / Int16ul,
    "BPB_TotSec16" / Int16ul,
    "BPB_Media" / Int8ul,
    "BPB_FATSz16" / Int16ul,
    "BPB_SecPerTrk" / Int16ul,
    "BPB_NumHeads" / Int16ul,
    "BPB_HiddSec" / Int32ul,
    "BPB_TotSec32" / Int32ul,
    "BPB_FATSz32" / Int32ul,
)
assert FAT_BOOT_SECTOR.sizeof() == 40
FAT_JUMPS = frozenset({0xEB, 0xE9})
FAT16_MAX_CLUSTERS = 0xFFF4
FAT32_MAX_CLUSTERS = 0x0FFFFFF6

EXT_OFFSET = 1024
EXT_SUPERBLOCK = Struct(
    "s_inodes_count" / Int32ul,
    "s_blocks_count_lo" / Int32ul,
    Padding(16),
    "s_log_block_size" / Int32ul,
    "s_log_cluster_size" / Int32ul,
    "s_blocks_per_group" / Int32ul,
    "s_clusters_per_group" / Int32ul,
    "s_inodes_per_group" / Int32ul,
    Padding(12),
    "s_magic" / Int16ul,
    Padding(34),
    "s_feature_compat" / Int32ul,
    "s_feature_incompat" / Int32ul,
    "s_feature_ro_compat" / Int32ul,
)
assert EXT_SUPERBLOCK.sizeof() == 104
EXT_MAGIC = 0xEF53
EXT_MAX_LOG_BLOCK_SIZE = 6
COMPAT_HAS_JOURNAL = 0x0004
INCOMPAT_RECOVER = 0x0004
INCOMPAT_JOURNAL_DEV = 0x0008
EXT2_INCOMPAT = 0x0002 | 0x0010  # FILETYPE, META_BG
EXT3_INCOMPAT = EXT2_INCOMPAT | INCOMPAT_RECOVER
EXT3_RO_COMPAT = 0x0001 | 0x0002 | 0x0004  # SPARSE_SUPER, LARGE_FILE, BTREE_DIR; the same for ext2

MD_SUPERBLOCK_1 = Struct(
    "magic" / Int32ul,
    "major_version" / Int32ul,
    Padding(120),
    "data_offset" / Int64ul,  # these three in 512-byte sectors
    "data_size" / Int64ul,
    "super_offset" / Int64ul,
)
assert MD_SUPERBLOCK_1.sizeof() == 152
MD_MAGIC = 0xA92B4EFC
MD_RESERVED = 64 << 10
"""Bytes at the end of a member that metadata 0.90 keeps for itself, in units of as many."""
# md_magic and major_version of metadata 0.90, in the byte order of the machine that wrote them.
MD_0_SIGNATURES = frozenset({MD_MAGIC.to_bytes(4, "little") + bytes(4), MD_MAGIC.to_bytes(4, "big") + bytes(4)})

SWAP_PAGE_SIZES = (4096, 8192, 16384, 32768, 65536)
SWAP_MAGICS = frozenset({b"SWAPSPACE2", b"SWAP-SPACE"})
HIBERNATED_SWAP_MAGICS = (b"S1SUSPEND", b"S2SUSPEND", b"ULSUSPEND", b"LINHIB0001")

BITLOCKER_TO_GO_GUID = bytes.fromhex("3bd66749292ed84a8399f6a339e3d001")
VOLUME_DESCRIPTORS = 32768
"""Where the volume descriptors of ISO 9660 and UDF begin; they are 2,048 bytes apart."""


def identify_filesystem(source: ByteSource) -> str | None:
    """Return what `source` holds by blkid's TYPE name, or None if no signature is known.

    Where several signatures have survived, the one that mkfs would have overwritten goes first. Costs one read of the
    start and one request for the places of Linux RAID near the end. Raises what the source raises.
    """
    head = source.read_at(0, min(HEAD_SIZE, source.size))
    # First, because the members of a mirror hold the file system at their start as if there were no RAID.
    if _is_raid_member(source, head):
        return "linux_raid_member"
    for identify in _PROBES:
        found = identify(head)
        if found is not None:
            return found
    return None


def _at(offset: int, *magics: bytes) -> Callable[[bytes], bool]:
    return lambda head: any(head.startswith(magic, offset) for magic in magics)


def _named(name: str, matches: Callable[[bytes], bool]) -> Callable[[bytes], str | None]:
    return lambda head: name if matches(head) else None


def _is_bitlocker(head: bytes) -> bool:
    return head[3:11] == b"-FVE-FS-" or (head[3:11] == b"MSWIN4.1" and head[424:440] == BITLOCKER_TO_GO_GUID)


def _is_ntfs(head: bytes) -> bool:
    return head[3:11] == b"NTFS    " and _is_sector_size(int.from_bytes(head[11:13], "little")) and head[13] != 0


def _is_xfs(head: bytes) -> bool:
    block_size = int.from_bytes(head[4:8], "big")
    return head[:4] == b"XFSB" and 512 <= block_size <= 65536 and is_power_of_two(block_size)


def _is_squashfs(head: bytes) -> bool:
    return head[:4] == b"hsqs" and int.from_bytes(head[28:30], "little") == 4


def _is_vfat(head: bytes) -> bool:
    """Tell whether the BIOS parameter block describes a FAT of a possible size; no signature is always there."""
    if len(head) < 512:
        return False
    is_named = head.startswith((b"FAT", b"MSDOS"), 54) or head.startswith((b"FAT", b"MSWIN"), 82)
    is_boot_sector = head[0] in FAT_JUMPS and head[510:512] == b"\x55\xaa"
    # OS/2 puts a parameter block before its other file systems as well.
    if not (is_named or is_boot_sector) or head.startswith((b"JFS", b"HPFS"), 54):
        return False
    boot = FAT_BOOT_SECTOR.parse(head)
    if not _is_sector_size(boot.BPB_BytsPerSec) or not is_power_of_two(boot.BPB_SecPerClus):
        return False
    if not boot.BPB_RsvdSecCnt or not boot.BPB_NumFATs or not (boot.BPB_Media == 0xF0 or boot.BPB_Media >= 0xF8):
        return False
    fat_sectors = (boot.BPB_FATSz16 or boot.BPB_FATSz32) * boot.BPB_NumFATs
    root_sectors = -(-boot.BPB_RootEntCnt * 32 // boot.BPB_BytsPerSec)
    data_sectors = (boot.BPB_TotSec16 or boot.BPB_TotSec32) - boot.BPB_RsvdSecCnt - fat_sectors - root_sectors
    if not fat_sectors or data_sectors < 0:
        return False
    clusters = data_sectors // boot.BPB_SecPerClus
    return bool(clusters <= (FAT16_MAX_CLUSTERS if boot.BPB_FATSz16 else FAT32_MAX_CLUSTERS))


def _is_sector_size(size: int) -> bool:
    return 512 <= size <= 4096 and is_power_of_two(size)


def _is_lvm2(head: bytes) -> bool:
    """Tell whether one of the first four sectors is a physical volume's label, which names its own place."""
    return any(
        head[at : at + 8] == b"LABELONE"
        and head[at + 24 : at + 32] == b"LVM2 001"
        and int.from_bytes(head[at + 8 : at + 16], "little") == sector
        for sector, at in enumerate(range(0, 4 * 512, 512))
    )


def _ext(head: bytes) -> str | None:
    """Tell the generations of ext apart: the oldest one that knows every feature in use gives the name."""
    if len(head) < EXT_OFFSET + EXT_SUPERBLOCK.sizeof():
        return None
    superblock = EXT_SUPERBLOCK.parse(head[EXT_OFFSET : EXT_OFFSET + EXT_SUPERBLOCK.sizeof()])
    if superblock.s_magic != EXT_MAGIC or superblock.s_log_block_size > EXT_MAX_LOG_BLOCK_SIZE:
        return None
    incompat = superblock.s_feature_incompat
    if incompat & INCOMPAT_JOURNAL_DEV:
        return "jbd"
    if incompat & ~EXT3_INCOMPAT or superblock.s_feature_ro_compat & ~EXT3_RO_COMPAT:
        return "ext4"
    return "ext3" if superblock.s_feature_compat & COMPAT_HAS_JOURNAL else "ext2"


def _is_hfsplus(head: bytes) -> bool:
    return head[1024:1028] in {b"H+\0\4", b"HX\0\5"}  # signature and version, big-endian


def _swap(head: bytes) -> str | None:
    """The signature is at the end of the first page, whose size is the machine's."""
    for page_size in SWAP_PAGE_SIZES:
        magic = head[page_size - 10 : page_size]
        if magic in SWAP_MAGICS:
            return "swap"
        if magic.startswith(HIBERNATED_SWAP_MAGICS):
            return "swsuspend"
    return None


def _optical(head: bytes) -> str | None:
    """Identify UDF and ISO 9660 by their volume descriptors; a bridge disc has both and is UDF."""
    found = {head[at + 1 : at + 6] for at in range(VOLUME_DESCRIPTORS, len(head), 2048)}
    if b"BEA01" in found and found & {b"NSR02", b"NSR03"}:
        return "udf"
    return "iso9660" if _at(VOLUME_DESCRIPTORS + 1, b"CD001")(head) else None


def _is_raid_member(source: ByteSource, head: bytes) -> bool:
    """Look for the superblocks of metadata 1.1, 1.2 (start), 1.0 and 0.90 (end)."""
    if any(_is_md_superblock_1(head[at : at + MD_SUPERBLOCK_1.sizeof()], at) for at in (0, 4096)):
        return True
    offset_0 = source.size // MD_RESERVED * MD_RESERVED - MD_RESERVED
    if offset_0 < 0:
        return False
    offset_1 = source.size // 4096 * 4096 - 8192
    superblock_0, superblock_1 = read_ranges(source, [(offset_0, 8), (offset_1, MD_SUPERBLOCK_1.sizeof())])
    return superblock_0 in MD_0_SIGNATURES or _is_md_superblock_1(superblock_1, offset_1)


def _is_md_superblock_1(data: bytes, offset: int) -> bool:
    """Tell whether a superblock of major version 1 is here, which names its own place."""
    if len(data) < MD_SUPERBLOCK_1.sizeof():
        return False
    superblock = MD_SUPERBLOCK_1.parse(data)
    return bool(
        superblock.magic == MD_MAGIC and superblock.major_version == 1 and superblock.super_offset * 512 == offset
    )


# By the place of the signature: making a file system overwrites the first sectors, and often nothing else.
_PROBES: tuple[Callable[[bytes], str | None], ...] = (
    _named("crypto_LUKS", _at(0, b"LUKS\xba\xbe")),
    _named("BitLocker", _is_bitlocker),
    _named("ntfs", _is_ntfs),
    _named("exfat", _at(3, b"EXFAT   ")),
    _named("ReFS", _at(0, b"\0\0\0ReFS\0")),
    _named("xfs", _is_xfs),
    _named("squashfs", _is_squashfs),
    _named("vfat", _is_vfat),
    _named("LVM2_member", _is_lvm2),
    _ext,
    _named("f2fs", _at(1024, b"\x10\x20\xf5\xf2")),
    _named("hfsplus", _is_hfsplus),
    _swap,
    _named("jfs", _at(32768, b"JFS1")),
    _optical,
    _named("reiserfs", _at(8192 + 52, b"ReIsErFs")),
    _named("reiserfs", _at(65536 + 52, b"ReIsErFs", b"ReIsEr2Fs", b"ReIsEr3Fs")),
    _named("btrfs", _at(65536 + 64, b"_BHRfS_M")),
)
