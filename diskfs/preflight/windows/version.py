"""Which Windows it is: version, edition, build, bitness, languages."""

import functools
import re
from dataclasses import dataclass

from diskfs.guest.errors import GuestError
from diskfs.guest.files import GuestFiles
from diskfs.preflight.supported_os import WindowsSystem, windows_editions, windows_systems
from diskfs.preflight.windows.readings import MAX_SHOWN, SOFTWARE, SYSTEM, Reading, Registry, first_text

CURRENT_VERSION = r"Microsoft\Windows NT\CurrentVersion"
ENGLISH_US = 0x0409
FIRST_WINDOWS_11 = 22000
_SUITES = {"datacenter": "Datacenter", "enterprise": "Enterprise", "blade": "Web", "small business": "Small Business"}
"""Editions of Windows Server 2003, the gravest first; without any of these it is Standard."""
_MACHINES = {0x014C: "x86", 0x8664: "x64", 0xAA64: "arm64", 0x01C4: "arm"}
_ARCHITECTURES = {"AMD64": "x64", "X86": "x86", "ARM64": "arm64"}
_BITS = {"x86": 32, "x64": 64, "arm64": 64, "arm": 32}


@dataclass(frozen=True, slots=True)
class Languages:
    """The language of installation and the one that is used, as Windows numbers them, and the packs installed."""

    installed: Reading
    default: Reading
    packs: tuple[str, ...]
    packs_where: str

    @property
    def ui(self) -> tuple[tuple[Reading, int | None], ...]:
        """The two settings with their numbers; None for what is missing or no hexadecimal number."""
        return tuple((reading, _language(reading.text)) for reading in (self.installed, self.default))


class WindowsVersion:
    """What the registry says of the version; each property raises GuestError if it cannot be read."""

    def __init__(self, registry: Registry, files: GuestFiles, folder: str) -> None:
        self._registry = registry
        self._files = files
        self._folder = folder

    def read(self, name: str) -> Reading:
        """Return a value of `SOFTWARE\\Microsoft\\Windows NT\\CurrentVersion`."""
        return self._registry.read(SOFTWARE, CURRENT_VERSION, name)

    @functools.cached_property
    def product_name(self) -> str:
        """`Windows Server 2019 Datacenter`; of Windows 11 it still says Windows 10."""
        return (self.read("ProductName").text or "")[:MAX_SHOWN]

    @functools.cached_property
    def edition_id(self) -> str:
        """`ServerDatacenter`; Windows before Vista has none."""
        return self.read("EditionID").text or ""

    @functools.cached_property
    def installation_type(self) -> str:
        """`Server`, `Server Core`, `Nano Server`, `Client`; Windows before Vista has none."""
        return self.read("InstallationType").text or ""

    @functools.cached_property
    def nt(self) -> str:
        """The version of the kernel's interfaces: `10.0`, `6.3`."""
        major = self.read("CurrentMajorVersionNumber").integer
        if major is not None:
            return f"{major}.{self.read('CurrentMinorVersionNumber').integer or 0}"
        return self.read("CurrentVersion").text or ""

    @functools.cached_property
    def build(self) -> int:
        """The build number, such as 17763; raises GuestError if there is none."""
        for name in ("CurrentBuildNumber", "CurrentBuild"):
            found = re.match(r"[0-9]{1,6}", self.read(name).text or "")
            if found:
                return int(found[0])
        raise GuestError(f"{self.read('CurrentBuildNumber')}; the version of Windows cannot be told without it")

    @functools.cached_property
    def service_pack(self) -> int:
        """The number of the service pack, 0 for none."""
        found = re.search(r"Service Pack ([0-9]{1,2})", self.read("CSDVersion").text or "")
        return int(found[1]) if found else 0

    @functools.cached_property
    def is_server(self) -> bool:
        """Whether it is a server; by the type of installation, or of the product where there is none."""
        if self.installation_type:
            return "server" in self.installation_type.lower()
        return (self.product_type.text or "").lower() in {"servernt", "lanmannt"}

    @property
    def product_type(self) -> Reading:
        """`WinNT` (client), `ServerNT`, `LanmanNT` (domain controller)."""
        return self._registry.read(SYSTEM, r"CurrentControlSet\Control\ProductOptions", "ProductType")

    @property
    def is_domain_controller(self) -> bool:
        return (self.product_type.text or "").lower() == "lanmannt"

    @functools.cached_property
    def machine(self) -> tuple[str, str]:
        """The processor that Windows is for (`x86`, `x64`, `arm64`, or nothing) and what told so."""
        path = f"{self._folder}/System32/ntoskrnl.exe"
        machine = _pe_machine(self._files, path)
        if machine is not None:
            name = _MACHINES.get(machine, "")
            return name, f"{self._files.volume}: {path}: machine {machine:#06x}"
        # The kernel of a compressed system (CompactOS) has its bytes elsewhere.
        reading = self._registry.read(
            SYSTEM, r"CurrentControlSet\Control\Session Manager\Environment", "PROCESSOR_ARCHITECTURE"
        )
        return _ARCHITECTURES.get((reading.text or "").upper(), ""), str(reading)

    @property
    def bits(self) -> int | None:
        """32 or 64, None if it cannot be told."""
        return _BITS.get(self.machine[0])

    @functools.cached_property
    def edition(self) -> str:
        """The edition as the service's table prints it, or nothing for one that is not in it."""
        for edition, ids in windows_editions().items():
            if self.edition_id in ids:
                return edition
        return "" if self.edition_id else self._edition_by_suite

    @property
    def product_suite(self) -> Reading:
        """`ProductSuite`: which edition a server before Vista is."""
        return self._registry.read(SYSTEM, r"CurrentControlSet\Control\ProductOptions", "ProductSuite")

    @property
    def _edition_by_suite(self) -> str:
        suites = {suite.lower() for suite in self.product_suite.texts or ()}
        for suite, edition in _SUITES.items():
            if suite in suites:
                return edition
        return "Standard"

    @property
    def edition_evidence(self) -> Reading:
        """What tells the edition: `EditionID`, or `ProductSuite` before Vista."""
        return self.read("EditionID") if self.edition_id else self.product_suite

    @functools.cached_property
    def listed(self) -> WindowsSystem | None:
        """The line of the service's table that this build belongs to, whatever its edition and bitness."""
        found = [
            system
            for system in windows_systems()
            if system.is_server == self.is_server and system.nt == self.nt and system.has_build(self.build)
        ]
        # 2003 and 2003 R2 have one build; the more particular line is taken where it fits.
        found.sort(key=lambda system: bool(system.product_name_contains), reverse=True)
        release = self.read("ProductName").text or ""
        return next((one for one in found if one.product_name_contains in release), None)

    @property
    def is_windows_11(self) -> bool:
        return not self.is_server and self.nt == "10.0" and self.build >= FIRST_WINDOWS_11

    @property
    def languages(self) -> Languages:
        """The languages of installation and use."""
        path, packs = r"CurrentControlSet\Control\Nls\Language", r"CurrentControlSet\Control\MUI\UILanguages"
        return Languages(
            self._registry.read(SYSTEM, path, "InstallLanguage"),
            self._registry.read(SYSTEM, path, "Default"),
            tuple(self._registry.names(SYSTEM, packs)),
            self._registry.where(SYSTEM, packs),
        )

    def __str__(self) -> str:
        name = self.product_name or "Windows"
        if self.is_windows_11:
            name = name.replace("Windows 10", "Windows 11")
        release = first_text([self.read("DisplayVersion"), self.read("ReleaseId"), self.read("CSDVersion")])[:MAX_SHOWN]
        bits = f", {self.bits}-bit" if self.bits else ""
        return f"{name}{f' {release}' if release else ''} (build {self.build}{bits})"


def _pe_machine(files: GuestFiles, path: str) -> int | None:
    """Return the machine of a Portable Executable (Microsoft PE/COFF: e_lfanew at 60), None if it is none."""
    if files.entry(path) is None:
        return None
    source = files.open(path)
    head = source.read_at(0, min(source.size, 4096))
    if head[:2] != b"MZ" or len(head) < 64:
        return None
    offset = int.from_bytes(head[60:64], "little")
    if offset + 6 > len(head) or head[offset : offset + 4] != b"PE\0\0":
        return None
    return int.from_bytes(head[offset + 4 : offset + 6], "little")


def _language(text: str | None) -> int | None:
    return int(text, 16) if text and re.fullmatch(r"[0-9A-Fa-f]{4,8}", text) else None
