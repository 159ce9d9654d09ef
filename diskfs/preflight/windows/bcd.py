"""The boot configuration data (BCD): a hive of objects with numbered elements, that Windows' boot manager reads.

Numbers: Microsoft, "BCD Reference": BcdObject, BcdBootMgrElementTypes, BcdLibraryElementTypes, BcdOSLoaderElementTypes.
Windows before Vista has boot.ini instead.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from diskfs.guest.files import GuestFiles
from diskfs.guest.registry import Hive, Key
from diskfs.preflight.windows.readings import open_hive_of

BOOT_MANAGER = 0x10100002
OS_LOADER = 0x10200003
LEGACY_LOADER = 0x10300006
EMS_SETTINGS = "{0ce4991b-e6b3-4b16-b23c-5e0d9250e5d9}"

LIBRARY_PATH = 0x12000002
LIBRARY_DESCRIPTION = 0x12000004
RECOVERY_SEQUENCE = 0x14000008
RECOVERY_ENABLED = 0x16000009
LIBRARY_EMS = 0x16000020
DEFAULT_OBJECT = 0x23000003
DISPLAY_ORDER = 0x24000001
TIMEOUT = 0x25000004
OS_DEVICE = 0x21000001
SYSTEM_ROOT = 0x22000002
WINPE = 0x26000022
OS_EMS = 0x260000B0
HYPERVISOR_LAUNCH = 0x250000F0
BOOT_STATUS_POLICY = 0x250000E0
HYPERVISOR_AUTO = 1
MAX_OBJECTS = 1024
MAX_TEXT = 256
MAX_LISTED = 16
DEFAULT_TIMEOUT = 30
MAX_BOOT_INI = 1 << 20


@dataclass(frozen=True, slots=True)
class BcdObject:
    """One object: an entry of the menu, the boot manager, settings that others inherit."""

    id: str
    type: int
    elements: Key | None
    where: str

    def data(self, element: int) -> bytes | str | tuple[str, ...] | None:
        """Return an element by its type; None if the object has none."""
        key = None if self.elements is None else self.elements.subkey(f"{element:08x}")
        value = None if key is None else key.value("Element")
        if value is None:
            return None
        if value.text is not None:
            return value.text
        return value.data if value.texts is None else value.texts

    def text(self, element: int) -> str:
        """Return a text, or nothing."""
        data = self.data(element)
        return data[:MAX_TEXT] if isinstance(data, str) else ""

    def texts(self, element: int) -> tuple[str, ...]:
        """Return a list, which a single text counts as."""
        data = self.data(element)
        if isinstance(data, str):
            return (data,)
        return data if isinstance(data, tuple) else ()

    def number(self, element: int) -> int | None:
        """Return a number or truth value, None without one."""
        data = self.data(element)
        return int.from_bytes(data, "little") if isinstance(data, bytes) and 1 <= len(data) <= 8 else None

    def evidence(self, element: int, name: str) -> str:
        """Say where an element is and what it is."""
        shown = self.text(element) or " ".join(self.texts(element)[:MAX_LISTED])[:MAX_TEXT] or self.number(element)
        found = "is not there" if shown is None else f"is {shown}"
        return f"{self.where}\\Objects\\{self.id}\\Elements\\{element:08x} ({name}) {found}"


@dataclass(frozen=True, slots=True)
class BootStore:
    """A BCD store: where it is (`disk0p1: /Boot/BCD`) and its objects by identifier, lower case."""

    where: str
    objects: dict[str, BcdObject]
    unclean: str

    @property
    def manager(self) -> BcdObject | None:
        """The boot manager's object."""
        return next((found for found in self.objects.values() if found.type == BOOT_MANAGER), None)

    @property
    def loaders(self) -> tuple[BcdObject, ...]:
        """Every loader of an operating system but Windows PE, in the menu or not: the recovery environment is one."""
        return tuple(
            found
            for found in self.objects.values()
            if found.type in {OS_LOADER, LEGACY_LOADER} and not found.number(WINPE)
        )

    @property
    def menu(self) -> tuple[BcdObject, ...]:
        """The entries that the user may choose from; without a list, every loader that is no recovery environment."""
        manager = self.manager
        order = () if manager is None else manager.texts(DISPLAY_ORDER)
        return tuple(self.objects[name.lower()] for name in order if name.lower() in self.objects) or self.loaders

    @property
    def systems(self) -> tuple[str, ...]:
        """The systems that the menu starts, by name: entries for one device and folder are one system."""
        found: dict[tuple[bytes | str | tuple[str, ...] | None, str], str] = {}
        for entry in self.menu:
            place = (entry.data(OS_DEVICE), entry.text(SYSTEM_ROOT).lower())
            found.setdefault(place, entry.text(LIBRARY_DESCRIPTION) or entry.id)
        return tuple(found.values())

    @property
    def default(self) -> BcdObject | None:
        """The entry that boots."""
        manager = self.manager
        name = "" if manager is None else manager.text(DEFAULT_OBJECT).lower()
        return self.objects.get(name) or next(iter(self.menu), None)

    @property
    def timeout(self) -> int:
        """Seconds for which the menu is shown, if there is more than one entry."""
        number = None if self.manager is None else self.manager.number(TIMEOUT)
        return DEFAULT_TIMEOUT if number is None else number


@dataclass(frozen=True, slots=True)
class BootIni:
    """The boot.ini of Windows before Vista: where, and the lines of `[operating systems]` with their numbers."""

    where: str
    timeout: int
    entries: tuple[tuple[int, str], ...]
    redirects: tuple[tuple[int, str], ...]
    """Lines that redirect the console to a serial port, for EMS."""


def read_store(files: GuestFiles, path: str) -> BootStore:
    """Read a BCD store; raises DiskfsError for one that is damaged or cannot be read."""
    hive = open_hive_of(files, path)
    where = f"{files.volume}: {path}"
    return BootStore(where, {found.id.lower(): found for found in _objects(hive, where)}, hive.unclean)


def _objects(hive: Hive, where: str) -> Iterator[BcdObject]:
    key = hive.key("Objects")
    for count, found in enumerate(key.subkeys() if key is not None else ()):
        if count >= MAX_OBJECTS:
            return
        description = found.subkey("Description")
        type_ = None if description is None else description.value("Type")
        yield BcdObject(found.name, (type_.integer if type_ else None) or 0, found.subkey("Elements"), where)


def read_boot_ini(files: GuestFiles, path: str) -> BootIni:
    """Read a boot.ini; raises DiskfsError if it cannot be read."""
    section, timeout = "", DEFAULT_TIMEOUT
    entries, redirects = [], []
    text = files.read(path, limit=MAX_BOOT_INI).decode("latin-1")
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()  # noqa: PLW2901
        if line.startswith("["):
            section = line.lower()
        elif section == "[boot loader]":
            found = re.match(r"timeout\s*=\s*([0-9]{1,6})", line, re.IGNORECASE)
            timeout = int(found[1]) if found else timeout
            if re.match(r"redirect\s*=", line, re.IGNORECASE):
                redirects.append((number, line))
        elif section == "[operating systems]" and "=" in line and not line.startswith(";"):
            entries.append((number, line))
            if "/redirect" in line.lower():
                redirects.append((number, line))
    return BootIni(f"{files.volume}: {path}", timeout, tuple(entries), tuple(redirects))
