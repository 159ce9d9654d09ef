"""A whole Windows Server 2019 as VM Import wants it, of which a test changes one thing.

The hives are made by hivex, the partition tables by sfdisk; the file systems are folders. What Windows itself would
have written (values, layouts) follows Microsoft's documentation of each.
"""

import functools
import struct
import subprocess
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from diskfs.disks.opening import open_source
from diskfs.guest.files import Volume
from diskfs.guest.folder_files import FolderFiles
from diskfs.preflight.facts import Facts
from diskfs.preflight.request import Request
from diskfs.preflight.rules.engine import Result, run
from tests.guest.hives import Data, make_hive, merged

MIB = 1 << 20
GIB = 1 << 30
DISK_SIGNATURE = 0x4A5B6C7D
MBR_TABLE = f"""label: dos
label-id: {DISK_SIGNATURE:#x}
start=2048, size=1024000, type=7, bootable
start=1026048, type=7
"""
GPT_TABLE = """label: gpt
start=2048, size=204800, type=c12a7328-f81f-11d2-ba4b-00a0c93ec93b
start=206848, size=32768, type=e3c9e316-0b5c-4db8-817d-f92df00215ae
start=239616, type=ebd0a0a2-b9e5-4433-87c0-68b6b72699c7, uuid=11223344-5566-7788-99aa-bbccddeeff00
"""
SYSTEM_PARTITION = {"mbr": 2, "gpt": 3}
BOOT_PARTITION = 1

CONTROL = "ControlSet001\\Control"
SERVICES = "ControlSet001\\Services"
INTERFACE = SERVICES + "\\Tcpip\\Parameters\\Interfaces\\{1a2b3c4d-0000-0000-0000-000000000001}"
FIREWALL = SERVICES + "\\SharedAccess\\Parameters\\FirewallPolicy"
RDP_RULE = (
    "v2.28|Action=Allow|Active=TRUE|Dir=In|Protocol=6|LPort=3389|App=%SystemRoot%\\system32\\svchost.exe|"
    "Svc=termservice|Name=@FirewallAPI.dll,-28775|EmbedCtxt=@FirewallAPI.dll,-28752|"
)
SYSTEM: Mapping[str, Mapping[str, Data]] = {
    "Select": {"Current": 1, "Default": 1, "LastKnownGood": 1},
    "MountedDevices": {"\\DosDevices\\C:": struct.pack("<IQ", DISK_SIGNATURE, 1026048 * 512)},
    CONTROL + "\\ProductOptions": {"ProductType": "ServerNT"},
    CONTROL + "\\ComputerName\\ComputerName": {"ComputerName": "WIN-TEST"},
    CONTROL + "\\Session Manager": {"BootExecute": ["autocheck autochk *"]},
    CONTROL + "\\Session Manager\\Environment": {"PROCESSOR_ARCHITECTURE": "AMD64"},
    CONTROL + "\\Session Manager\\Memory Management": {"PagingFiles": ["C:\\pagefile.sys 4096 4096"]},
    CONTROL + "\\Nls\\Language": {"InstallLanguage": "0409", "Default": "0409"},
    CONTROL + "\\MUI\\UILanguages\\en-US": {"LCID": 0x409},
    CONTROL + "\\TimeZoneInformation": {"RealTimeIsUniversal": 1},
    CONTROL + "\\Terminal Server": {"fDenyTSConnections": 0},
    CONTROL + "\\Terminal Server\\WinStations\\RDP-Tcp": {"PortNumber": 3389},
    CONTROL + "\\Lsa\\FipsAlgorithmPolicy": {"Enabled": 0},
    SERVICES + "\\AFD": {"Start": 1},
    SERVICES + "\\AWSNVMe": {"Start": 0},
    SERVICES + "\\Dhcp": {"Start": 2, "ImagePath": "%SystemRoot%\\system32\\svchost.exe -k LocalService"},
    SERVICES + "\\ena": {"Start": 3},
    SERVICES + "\\mpssvc": {"Start": 2},
    SERVICES + "\\stornvme": {"Start": 0, "ImagePath": "System32\\drivers\\stornvme.sys"},
    SERVICES + "\\Tcpip": {"Start": 0},
    SERVICES + "\\TermService": {"Start": 3},
    SERVICES + "\\WinDefend": {"Start": 4},
    INTERFACE: {"EnableDHCP": 1, "DhcpIPAddress": "192.0.2.7"},
    FIREWALL + "\\DomainProfile": {"EnableFirewall": 0},
    FIREWALL + "\\StandardProfile": {"EnableFirewall": 0},
    FIREWALL + "\\PublicProfile": {"EnableFirewall": 0},
    FIREWALL + "\\FirewallRules": {"RemoteDesktop-UserMode-In-TCP": RDP_RULE},
    "Setup\\Status\\SysprepStatus": {"GeneralizationState": 7},
}

VERSION = "Microsoft\\Windows NT\\CurrentVersion"
CURRENT = "Microsoft\\Windows\\CurrentVersion"
NDP = "Microsoft\\NET Framework Setup\\NDP"
SOFTWARE: Mapping[str, Mapping[str, Data]] = {
    VERSION: {
        "ProductName": "Windows Server 2019 Datacenter",
        "EditionID": "ServerDatacenter",
        "InstallationType": "Server",
        "CurrentVersion": "6.3",
        "CurrentMajorVersionNumber": 10,
        "CurrentMinorVersionNumber": 0,
        "CurrentBuild": "17763",
        "CurrentBuildNumber": "17763",
        "UBR": 3650,
        "ReleaseId": "1809",
        "BuildLabEx": "17763.1.amd64fre.rs5_release.180914-1434",
        "SystemRoot": "C:\\Windows",
    },
    VERSION + "\\Server\\ServerLevels": {"ServerCore": 1, "Server-Gui-Mgmt": 1, "Server-Gui-Shell": 1},
    VERSION + "\\Winlogon": {"AutoAdminLogon": "0"},
    CURRENT + "\\Setup\\State": {"ImageState": "IMAGE_STATE_GENERALIZE_RESEAL_TO_OOBE"},
    CURRENT + "\\WindowsUpdate\\Auto Update": {},
    CURRENT + "\\RunOnce": {},
    CURRENT + "\\Component Based Servicing\\Packages": {},
    NDP + "\\v4\\Full": {"Install": 1, "Release": 461814, "Version": "4.7.03190"},
    "WOW6432Node": {},
}

BOOT_MANAGER = "{9dea862c-5cdd-4e70-acc1-f32b344d4795}"
LOADER = "{11111111-2222-3333-4444-555555555555}"
SECOND_LOADER = "{11111111-2222-3333-4444-666666666666}"
RECOVERY = "{11111111-2222-3333-4444-777777777777}"
EMS_SETTINGS = "{0ce4991b-e6b3-4b16-b23c-5e0d9250e5d9}"


def bcd_object(name: str, type_: int, elements: Mapping[int, Data]) -> dict[str, dict[str, Data]]:
    """Return the keys of one object of a BCD store."""
    keys: dict[str, dict[str, Data]] = {f"Objects\\{name}\\Description": {"Type": type_}}
    keys |= {f"Objects\\{name}\\Elements\\{element:08x}": {"Element": data} for element, data in elements.items()}
    return keys


def loader(extension: str) -> dict[int, Data]:
    return {
        0x12000002: f"\\Windows\\system32\\winload.{extension}",
        0x12000004: "Windows Server",
        0x22000002: "\\Windows",
        0x14000008: [RECOVERY],
        0x16000009: b"\x01",
    }


def boot_store(extension: str) -> dict[str, dict[str, Data]]:
    """Return the keys of a store with one system and its recovery environment."""
    return {
        "Description": {"KeyName": "BCD00000000"},
        **bcd_object(
            BOOT_MANAGER,
            0x10100002,
            {0x23000003: LOADER, 0x24000001: [LOADER], 0x25000004: struct.pack("<Q", 30), 0x14000006: [EMS_SETTINGS]},
        ),
        **bcd_object(LOADER, 0x10200003, loader(extension)),
        **bcd_object(
            RECOVERY, 0x10200003, {0x12000002: f"\\windows\\system32\\winload.{extension}", 0x26000022: b"\x01"}
        ),
        **bcd_object(EMS_SETTINGS, 0x20100000, {0x16000020: b"\x00"}),
    }


RC4_HASH = struct.pack("<HH", 3, 1) + bytes(range(16))
"""A stored hash as up to Windows Server 2012 R2: identifier, revision 1, 16 bytes."""
RC4_EMPTY = struct.pack("<HH", 3, 1)
AES_HASH = struct.pack("<HHI", 3, 2, 24) + bytes(16) + bytes(range(32))
AES_EMPTY = struct.pack("<HHI", 3, 2, 24) + bytes(16)
USERS = "SAM\\Domains\\Account\\Users"


def account(rid: int, name: str, stored: bytes = RC4_HASH, flags: int = 0x0210) -> dict[str, dict[str, Data]]:
    """Return the key of one local account: a normal one whose password does not expire, unless told otherwise."""
    text = name.encode("utf-16-le")
    descriptors = bytearray(0xCC)
    struct.pack_into("<II", descriptors, 0x0C, 0, len(text))
    struct.pack_into("<II", descriptors, 0xA8, len(text), len(stored))
    fixed = bytearray(0x50)
    struct.pack_into("<IH", fixed, 0x30, rid, 0)
    struct.pack_into("<H", fixed, 0x38, flags)
    return {f"{USERS}\\{rid:08X}": {"F": bytes(fixed), "V": bytes(descriptors) + text + stored}}


SAM: Mapping[str, Mapping[str, Data]] = {
    **account(500, "Administrator"),
    **account(501, "Guest", RC4_EMPTY, 0x0215),
    f"{USERS}\\Names": {},
}
HIVES = {"SYSTEM": SYSTEM, "SOFTWARE": SOFTWARE, "SAM": SAM}
PROGRAMS = Path(sysconfig.get_path("purelib")) / "pip" / "_vendor" / "distlib"
"""Real Windows programs, by Microsoft's linker: t32.exe, t64.exe, t64-arm.exe."""
MBR_CODE = b"\x33\xc0\x8e\xd0Invalid partition table\0Error loading operating system\0Missing operating system\0"
VOLUME_CODE = b"\xeb\x52\x90NTFS    BOOTMGR is missing\0"


class Prepared(tuple[Volume, ...]):
    """Volumes that need no closing."""

    __slots__ = ()

    def close(self) -> None:
        pass


@functools.cache
def base_hive(name: str) -> bytes:
    stores = {"BCD": boot_store("exe"), "BCD-EFI": boot_store("efi")}
    return make_hive(HIVES.get(name) or stores[name])


def windows_tree(
    folder: Path,
    *,
    system: Mapping[str, Mapping[str, Data] | None] = MappingProxyType({}),
    software: Mapping[str, Mapping[str, Data] | None] = MappingProxyType({}),
    sam: Mapping[str, Mapping[str, Data] | None] = MappingProxyType({}),
    bcd: Mapping[str, Mapping[str, Data] | None] = MappingProxyType({}),
    files: Mapping[str, bytes | None] = MappingProxyType({}),
    boot_files: Mapping[str, bytes | None] = MappingProxyType({}),
    free: int | None = 20 * GIB,
    state: frozenset[str] = frozenset(),
    scheme: str = "mbr",
    table: str = "",
    size: int = 40 * GIB,
    disk_format: str = "raw",
    request: Request | None = None,
) -> Facts:
    """Write the tree below `folder` and return its facts, to be closed.

    The changes: keys and values of the hives (None deletes), files of the system drive and of the partition with the
    boot manager (None deletes), free bytes and remarks of the NTFS, `mbr` or `gpt`, another table, size or format of
    the disk, the request.
    """
    disk = _disk(folder, scheme, table, size, disk_format)
    windows, boot = folder / "windows", folder / "boot"
    hives = {"SYSTEM": system, "SOFTWARE": software, "SAM": sam}
    content: dict[str, bytes | None] = {
        f"/Windows/System32/config/{name}": make_hive(merged(HIVES[name], changes)) if changes else base_hive(name)
        for name, changes in hives.items()
    }
    content["/Windows/System32/ntoskrnl.exe"] = (PROGRAMS / "t64.exe").read_bytes()
    _write(windows, {**content, **files})
    store_name, extension = ("BCD", "exe") if scheme == "mbr" else ("BCD-EFI", "efi")
    store = make_hive(merged(boot_store(extension), bcd)) if bcd else base_hive(store_name)
    program = (PROGRAMS / "t64.exe").read_bytes()
    _write(
        boot,
        {
            **(
                {"/bootmgr": b"BOOTMGR", "/Boot/BCD": store}
                if scheme == "mbr"
                else {
                    "/EFI/Microsoft/Boot/bootmgfw.efi": program,
                    "/EFI/Microsoft/Boot/BCD": store,
                    "/EFI/Boot/bootx64.efi": program,
                }
            ),
            **boot_files,
        },
    )
    return tree_facts(folder, disk, scheme=scheme, free=free, state=state, request=request)


def tree_facts(
    folder: Path,
    disk: Path,
    *,
    scheme: str = "mbr",
    free: int | None = 20 * GIB,
    state: frozenset[str] = frozenset(),
    request: Request | None = None,
) -> Facts:
    """Return the facts of the tree that was written below `folder`, to be closed."""
    facts = Facts(request or Request(), str(disk), open_source(str(disk)))
    facts.__dict__["fact volumes"] = Prepared(
        [
            _volume(folder / "boot", BOOT_PARTITION, "ntfs" if scheme == "mbr" else "vfat", MIB * 100, frozenset()),
            _volume(folder / "windows", SYSTEM_PARTITION[scheme], "ntfs", free, state),
        ]
    )
    return facts


def results(facts: Facts) -> dict[str, Result]:
    """Run all rules; close the facts."""
    with facts:
        return {result.rule.id: result for result in run(facts)}


def _volume(root: Path, number: int, kind: str, free: int | None, state: frozenset[str]) -> Volume:
    name = f"disk0p{number}"
    files = FolderFiles(root, kind=kind, size=39 * GIB, free=free, volume=name, state=state, ignore_case=True)
    return Volume(name, 0, number, MIB, 39 * GIB, kind, files)


def _disk(folder: Path, scheme: str, table: str, size: int, disk_format: str) -> Path:
    disk = folder / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(size)
    text = table or (MBR_TABLE if scheme == "mbr" else GPT_TABLE)
    subprocess.run(["sfdisk", "--quiet", disk], input=text, text=True, check=True, capture_output=True)
    with disk.open("r+b") as file:
        if "label: dos" in text or "LegacyBIOSBootable" in text:
            file.write(MBR_CODE)
        file.seek(2048 * 512)
        file.write(VOLUME_CODE.ljust(510, b"\0") + b"\x55\xaa")
    if disk_format == "raw":
        return disk
    converted = disk.with_suffix(f".{disk_format}")
    names = {"vhd": "vpc"}
    command: list[str | Path] = [
        "qemu-img",
        "convert",
        "-f",
        "raw",
        "-O",
        names.get(disk_format, disk_format),
        disk,
        converted,
    ]
    subprocess.run(command, check=True)
    return converted


def _write(root: Path, files: Mapping[str, bytes | None]) -> None:
    for path, content in files.items():
        if content is not None:
            target = root / path.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
