"""Which loader the boot code of a disk or partition is, and where it goes on.

Sources: GNU GRUB 2.06, boot/i386/pc/boot.S (`kernel_sector`, 8 bytes at 0x5C; the texts "GRUB " and "Geom"); GRUB 0.97,
stage1.S (version 3.x at 0x3E, `stage2_sector`, 4 bytes at 0x44); LILO's first.S; Syslinux's bootsecttext.inc.
"""

from dataclasses import dataclass

from diskfs_formats.source import ByteSource

BOOT_CODE_SIZE = 440
SIGNATURE = b"\x55\xaa"
SECTOR = 512


@dataclass(frozen=True, slots=True)
class BootCode:
    """The first sector of a disk or partition. `kind` is `grub2`, `grub-legacy`, `lilo`, `syslinux`, `windows`,
    `generic` (starts the active partition), `other`, or empty if there is no code.
    """

    kind: str
    next_sector: int = 0
    """Of GRUB: where its second part is, in sectors of 512 bytes."""
    has_next: bool = True
    """There is something at that place."""

    @property
    def is_grub(self) -> bool:
        return self.kind in {"grub2", "grub-legacy"}

    @property
    def starts_active(self) -> bool:
        """Tell whether it starts the partition that is marked active."""
        return self.kind in {"windows", "generic", "other"}


def read_boot_code(source: ByteSource) -> BootCode:
    """Read the first sector of a disk or partition; raises what the source raises."""
    sector = source.read_at(0, min(SECTOR, source.size))
    kind = identify_boot_code(sector)
    if kind not in {"grub2", "grub-legacy"}:
        return BootCode(kind)
    place, size = (0x5C, 8) if kind == "grub2" else (0x44, 4)
    next_sector = int.from_bytes(sector[place : place + size], "little")
    offset = next_sector * SECTOR
    is_inside = 0 < offset <= source.size - SECTOR
    return BootCode(kind, next_sector, has_next=is_inside and any(source.read_at(offset, SECTOR)))


def identify_boot_code(sector: bytes) -> str:
    """Return the kind of boot code in a first sector, empty if there is none."""
    code = sector[:BOOT_CODE_SIZE]
    if len(sector) < SECTOR or sector[510:512] != SIGNATURE or not any(code):
        return ""
    if b"GRUB " in code and b"Geom" in code:
        # Stage 1 of GRUB Legacy has its version here; GRUB 2 has zeros or the parameter block's end.
        is_legacy = code[0x3E] == 3 and code[0x3F] <= 9
        return "grub-legacy" if is_legacy else "grub2"
    if code[2:6] == b"LILO" or code[6:10] == b"LILO":
        return "lilo"
    if code[3:11] in {b"SYSLINUX", b"EXTLINUX"} or b"isolinux" in code.lower():
        return "syslinux"
    if b"BOOTMGR" in code or b"NTLDR" in code or b"Invalid partition table" in code:
        return "windows"
    # The words of the small programs that look for the active partition, Syslinux's mbr.bin among them.
    if b"Missing operating system" in code or b"Operating system load error" in code or b"No active" in code:
        return "generic"
    return "other"
