"""How Windows is started: its boot stores, and which firmware can start it."""

import functools
from collections.abc import Iterator, Sequence

from diskfs.guest.files import GuestFiles, Volume
from diskfs.preflight.windows.bcd import BootIni, BootStore, read_boot_ini, read_store

BIOS_STORE = "/Boot/BCD"
BIOS_MANAGER = "/bootmgr"
UEFI_STORE = "/EFI/Microsoft/Boot/BCD"
UEFI_MANAGER = "/EFI/Microsoft/Boot/bootmgfw.efi"
UEFI_FALLBACK = "/EFI/Boot/bootx64.efi"
OLD_LOADER = "/ntldr"
BOOT_INI = "/boot.ini"
FILE_SYSTEMS = frozenset({"ntfs", "vfat"})
MAX_STORES = 16


class WindowsBoot:
    """What starts Windows, on the volumes of all disks."""

    def __init__(self, volumes: Sequence[Volume], active: frozenset[str]) -> None:
        """Look at `volumes`; `active` are the names of those whose partition is marked active in an MBR."""
        self._volumes = volumes
        self._active = active

    def _files(self) -> Iterator[GuestFiles]:
        for volume in self._volumes:
            if volume.files is not None and volume.files.kind in FILE_SYSTEMS:
                yield volume.files

    @functools.cached_property
    def bios_reason(self) -> str:
        """The boot manager that a BIOS starts, on an active partition with its store; nothing without one."""
        for files in self._files():
            if files.volume not in self._active:
                continue
            for manager, store in ((BIOS_MANAGER, BIOS_STORE), (OLD_LOADER, BOOT_INI)):
                if files.entry(manager) is not None and files.entry(store) is not None:
                    return f"{files.volume} is active and has {manager} and {store}"
        return ""

    @functools.cached_property
    def uefi_reason(self) -> str:
        """The loader that UEFI firmware starts; nothing without one."""
        for files in self._files():
            if files.kind != "vfat":
                continue
            if files.entry(UEFI_MANAGER) is not None and files.entry(UEFI_STORE) is not None:
                return f"{files.volume} has {UEFI_MANAGER} and {UEFI_STORE}"
            if files.entry(UEFI_FALLBACK) is not None:
                return f"{files.volume} has {UEFI_FALLBACK}"
        return ""

    @property
    def fits(self) -> frozenset[str]:
        """The boot modes that fit, by the names of `--boot-mode`."""
        found = {"legacy-bios": self.bios_reason, "uefi": self.uefi_reason}
        return frozenset(mode for mode, reason in found.items() if reason)

    @functools.cached_property
    def stores(self) -> tuple[BootStore, ...]:
        """The BCD stores of all volumes; raises DiskfsError if one is damaged."""
        found: list[BootStore] = []
        for files in self._files():
            for path in (BIOS_STORE, UEFI_STORE):
                if len(found) < MAX_STORES and files.entry(path) is not None:
                    found.append(read_store(files, path))
        return tuple(found)

    @functools.cached_property
    def boot_inis(self) -> tuple[BootIni, ...]:
        """The boot.ini files of all volumes."""
        return tuple(read_boot_ini(files, BOOT_INI) for files in self._files() if files.entry(BOOT_INI) is not None)
