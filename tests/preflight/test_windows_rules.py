"""The rules about Windows: one change to a Windows Server 2019 that passes, and exactly the rules that it is about."""

import functools
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from diskfs.preflight.request import Operation, Request
from diskfs.preflight.rules.engine import Result
from diskfs.preflight.rules.registry import checks
from diskfs_formats.findings import Severity
from tests.guest.hives import make_hive, merged
from tests.preflight.windows_tree import (
    AES_EMPTY,
    AES_HASH,
    BOOT_MANAGER,
    CONTROL,
    CURRENT,
    EMS_SETTINGS,
    FIREWALL,
    GIB,
    GPT_TABLE,
    INTERFACE,
    LOADER,
    NDP,
    PROGRAMS,
    RC4_EMPTY,
    RDP_RULE,
    RECOVERY,
    SECOND_LOADER,
    SERVICES,
    VERSION,
    account,
    base_hive,
    bcd_object,
    loader,
    results,
    windows_tree,
)

GROUPS = frozenset({"GEN", "OS", "FS", "BOOT", "WIN"})
"""The groups of rules that look into a guest."""
FAIL, PASS, UNKNOWN, NOT_APPLICABLE = "fail", "pass", "unknown", "not-applicable"
POLICIES = "Policies\\Microsoft"
COMPONENTS = CURRENT + "\\Component Based Servicing"
NT_6_1 = {
    "CurrentVersion": "6.1", "CurrentMajorVersionNumber": None, "CurrentMinorVersionNumber": None,
    "CurrentBuild": "7601", "CurrentBuildNumber": "7601", "ReleaseId": None, "CSDVersion": "Service Pack 1",
}  # fmt: skip
SERVER_2008_R2 = {VERSION: {**NT_6_1, "ProductName": "Windows Server 2008 R2 Standard", "EditionID": "ServerStandard"}}
WINDOWS_7 = {
    VERSION: {**NT_6_1, "ProductName": "Windows 7 Ultimate", "EditionID": "Ultimate", "InstallationType": "Client"}
}
SERVER_2012_R2 = {
    VERSION: {
        **NT_6_1, "CurrentVersion": "6.3", "CurrentBuild": "9600", "CurrentBuildNumber": "9600", "CSDVersion": "",
        "ProductName": "Windows Server 2012 R2 Standard", "EditionID": "ServerStandard",
    }
}  # fmt: skip
WINDOWS_11 = {
    VERSION: {
        "ProductName": "Windows 10 Pro", "EditionID": "Professional", "InstallationType": "Client",
        "CurrentBuild": "22631", "CurrentBuildNumber": "22631", "DisplayVersion": "23H2",
    }
}  # fmt: skip
SERVER_2003 = {
    VERSION: {
        "ProductName": "Microsoft Windows Server 2003", "EditionID": None, "InstallationType": None,
        "CurrentVersion": "5.2", "CurrentMajorVersionNumber": None, "CurrentMinorVersionNumber": None,
        "CurrentBuild": "3790", "CurrentBuildNumber": "3790", "ReleaseId": None, "CSDVersion": None,
    }
}  # fmt: skip
CLIENT_CHANGES = {"VMIE-WIN-07": NOT_APPLICABLE, "VMIE-WIN-19": NOT_APPLICABLE, "VMIE-OS-08": PASS}
ANSWER_FILE = """<?xml version='1.0' encoding='UTF-8'?>
<unattend xmlns='urn:schemas-microsoft-com:unattend'>
 <settings pass='oobeSystem'>
  <component name='Microsoft-Windows-International-Core' processorArchitecture='amd64'/>
 </settings>
</unattend>
"""
PANTHER = "/Windows/Panther/unattend.xml"
HIVE_FOLDER = "/Windows/System32/config/"
USED_SYSTEM = {CURRENT + "\\Setup\\State": {"ImageState": "IMAGE_STATE_COMPLETE"}}
NOT_GENERALIZED = {"VMIE-WIN-19": FAIL, "VMIE-WIN-20": NOT_APPLICABLE}


def service(name: str, start: int) -> dict[str, dict[str, Any]]:
    return {f"{SERVICES}\\{name}": {"Start": start}}


def unclean(hive: bytes) -> bytes:
    """Return a hive as it is while Windows runs: the second sequence number is behind, the checksum right."""
    words = list(struct.unpack("<128I", hive[:512]))
    words[1] += 1
    words[127] = functools.reduce(int.__xor__, words[:127])
    return struct.pack("<128I", *words) + hive[512:]


def with_firewall(rule: str) -> dict[str, dict[str, Any]]:
    return {
        FIREWALL + "\\PublicProfile": {"EnableFirewall": 1},
        FIREWALL + "\\FirewallRules": {"RemoteDesktop-UserMode-In-TCP": rule},
    }


def with_port_list(entry: str) -> dict[str, Any]:
    return {
        FIREWALL + "\\StandardProfile": {"EnableFirewall": 1},
        FIREWALL + "\\StandardProfile\\GloballyOpenPorts\\List": {"3389:TCP": entry},
        FIREWALL + "\\PublicProfile": None,
        FIREWALL + "\\FirewallRules": None,
    }


def paging(*lines: str) -> dict[str, Any]:
    return {"system": {CONTROL + "\\Session Manager\\Memory Management": {"PagingFiles": list(lines)}}}


def software(path: str, name: str, data: Any) -> dict[str, Any]:
    return {"software": {path: {name: data}}}


def system(path: str, name: str, data: Any) -> dict[str, Any]:
    return {"system": {path: {name: data}}}


def started(name: str, start: int) -> dict[str, Any]:
    return {"system": service(name, start)}


TWO_SYSTEMS = {
    **bcd_object(SECOND_LOADER, 0x10200003, loader("exe")),
    **bcd_object(BOOT_MANAGER, 0x10100002, {0x24000001: [LOADER, SECOND_LOADER]}),
}
TWO_ACTIVE = "label: dos\nstart=2048, size=1024000, type=7, bootable\nstart=1026048, type=7, bootable\n"
HYBRID_GPT = GPT_TABLE.replace("93b\n", '93b, attrs="LegacyBIOSBootable"\n')
BOTH_MODES = {
    "scheme": "gpt",
    "table": HYBRID_GPT,
    "boot_files": {"/bootmgr": b"BOOTMGR", "/Boot/BCD": base_hive("BCD")},
}
DIRECTORY = SERVICES + "\\NTDS\\Parameters"
ON_D = {"DSA Database file": "D:\\NTDS\\ntds.dit", "Database log files path": "C:\\Windows\\NTDS"}
SECOND_PARTITION = struct.pack("<IQ", 0x4A5B6C7D, 2048 * 512)
UEFI_BASE = {"VMIE-BOOT-04": PASS, "VMIE-BOOT-05": PASS}

BOOT_INI = (
    b"[boot loader]\r\ntimeout=30\r\ndefault=multi(0)disk(0)rdisk(0)partition(2)\\WINDOWS\r\n[operating systems]\r\n"
    b'multi(0)disk(0)rdisk(0)partition(2)\\WINDOWS="Windows Server 2003, Standard" /noexecute=optout /fastdetect'
)


def old_boot(boot_ini: bytes) -> dict[str, bytes | None]:
    """Return the files of the boot partition as Windows before Vista has them."""
    return {"/bootmgr": None, "/Boot/BCD": None, "/ntldr": b"NTLDR", "/boot.ini": boot_ini}


CASES: list[tuple[str, dict[str, str], dict[str, Any]]] = [
    # what, each rule whose status differs from that of the tree as it is, the change
    ("VMIE-WIN-01 below 6 GiB", {"VMIE-WIN-01": FAIL}, {"free": 6 * GIB - 1}),
    ("VMIE-WIN-01 just 6 GiB", {}, {"free": 6 * GIB}),
    ("VMIE-WIN-01 not known", {"VMIE-WIN-01": UNKNOWN}, {"free": None}),
    ("VMIE-WIN-02 growing", {"VMIE-WIN-02": FAIL}, paging("C:\\pagefile.sys 1024 4096")),
    ("VMIE-WIN-02 managed", {"VMIE-WIN-02": FAIL}, paging("C:\\pagefile.sys 0 0")),
    ("VMIE-WIN-02 none", {}, paging()),
    ("VMIE-WIN-02 spaces", {"VMIE-WIN-02": FAIL}, paging("C:\\" + " " * 150 + "0")),
    ("VMIE-WIN-03", {"VMIE-WIN-02": FAIL, "VMIE-WIN-03": FAIL}, paging("?:\\pagefile.sys")),
    (
        "VMIE-WIN-04",
        {"VMIE-WIN-04": PASS, "VMIE-WIN-16": FAIL},
        {"software": SERVER_2012_R2},
    ),
    (
        "VMIE-WIN-05 of the system",
        {"VMIE-WIN-05": FAIL},
        {"bcd": bcd_object(LOADER, 0x10200003, {0x260000B0: b"\x01"})},
    ),
    (
        "VMIE-WIN-05 of the boot manager",
        {"VMIE-WIN-05": FAIL},
        {"bcd": bcd_object(EMS_SETTINGS, 0x20100000, {0x16000020: b"\x01"})},
    ),
    ("VMIE-WIN-06 a pack", {"VMIE-WIN-06": FAIL}, system(CONTROL + "\\MUI\\UILanguages\\ja-JP", "LCID", 0x411)),
    ("VMIE-WIN-06 installed", {"VMIE-WIN-06": FAIL}, system(CONTROL + "\\Nls\\Language", "InstallLanguage", "0411")),
    (
        "VMIE-WIN-06 a name",
        {"VMIE-WIN-06": FAIL},
        system(CONTROL + "\\ComputerName\\ComputerName", "ComputerName", "サーバー"),
    ),
    ("VMIE-WIN-07", {"VMIE-WIN-07": FAIL}, started("vmms", 2)),
    (
        "VMIE-WIN-07 the hypervisor alone",
        {"VMIE-WIN-07": FAIL},
        {"bcd": bcd_object(LOADER, 0x10200003, {0x250000F0: struct.pack("<Q", 1)})},
    ),
    ("VMIE-WIN-08 denied", {"VMIE-WIN-08": FAIL}, system(CONTROL + "\\Terminal Server", "fDenyTSConnections", 1)),
    (
        "VMIE-WIN-08 by policy",
        {"VMIE-WIN-08": FAIL},
        software(POLICIES + "\\Windows NT\\Terminal Services", "fDenyTSConnections", 1),
    ),
    ("VMIE-WIN-08 without service", {"VMIE-WIN-08": FAIL}, started("TermService", 4)),
    (
        "VMIE-WIN-09 no active rule",
        {"VMIE-WIN-09": FAIL, "VMIE-WIN-26": FAIL},
        {"system": with_firewall(RDP_RULE.replace("Active=TRUE", "Active=FALSE"))},
    ),
    (
        "VMIE-WIN-09 another profile",
        {"VMIE-WIN-09": FAIL, "VMIE-WIN-26": FAIL},
        {"system": with_firewall(RDP_RULE + "Profile=Domain|")},
    ),
    ("VMIE-WIN-09 let in", {"VMIE-WIN-26": FAIL}, {"system": with_firewall(RDP_RULE)}),
    (
        "VMIE-WIN-09 another program, all ports",
        {"VMIE-WIN-09": FAIL, "VMIE-WIN-26": FAIL},
        {"system": with_firewall("v2.28|Action=Allow|Active=TRUE|Dir=In|Protocol=6|App=C:\\x.exe|")},
    ),
    (
        "VMIE-WIN-09 all programs, a range",
        {"VMIE-WIN-26": FAIL},
        {"system": with_firewall("v2.28|Action=Allow|Active=TRUE|Dir=In|Protocol=6|LPort=80,3000-3389|")},
    ),
    ("VMIE-WIN-09 before Vista", {"VMIE-WIN-26": FAIL}, {"system": with_port_list("3389:TCP:*:Enabled:RDP")}),
    (
        "VMIE-WIN-09 before Vista, closed",
        {"VMIE-WIN-09": FAIL, "VMIE-WIN-26": FAIL},
        {"system": with_port_list("3389:TCP:*:Disabled:RDP")},
    ),
    (
        "VMIE-WIN-09 by policy",
        {"VMIE-WIN-09": FAIL, "VMIE-WIN-26": FAIL},
        {
            "software": {POLICIES + "\\WindowsFirewall\\PrivateProfile": {"EnableFirewall": 1}},
            "system": {FIREWALL + "\\FirewallRules": None},
        },
    ),
    (
        "VMIE-WIN-09 kept out",
        {"VMIE-WIN-09": FAIL, "VMIE-WIN-26": FAIL},
        {
            "system": merged(
                with_firewall(RDP_RULE),
                {FIREWALL + "\\FirewallRules": {"no": "v2.28|Action=Block|Active=TRUE|Dir=In|Protocol=6|LPort=3389|"}},
            )
        },
    ),
    (
        "VMIE-WIN-09 another port",
        {"VMIE-WIN-09": FAIL, "VMIE-WIN-26": FAIL},
        {
            "system": {
                **with_firewall(RDP_RULE),
                CONTROL + "\\Terminal Server\\WinStations\\RDP-Tcp": {"PortNumber": 3390},
            }
        },
    ),
    ("VMIE-WIN-10 no hash", {"VMIE-WIN-10": FAIL}, {"sam": account(1000, "user", RC4_EMPTY)}),
    ("VMIE-WIN-10 no hash, AES", {"VMIE-WIN-10": FAIL}, {"sam": account(1000, "user", AES_EMPTY)}),
    ("VMIE-WIN-10 AES", {"VMIE-WIN-10": UNKNOWN}, {"sam": account(1000, "user", AES_HASH)}),
    ("VMIE-WIN-10 not required", {"VMIE-WIN-10": FAIL}, {"sam": account(1000, "user", flags=0x0014)}),
    ("VMIE-WIN-10 disabled", {}, {"sam": account(1000, "user", RC4_EMPTY, 0x0011)}),
    ("VMIE-WIN-11 4.5", {}, software(NDP + "\\v4\\Full", "Release", 378389)),
    (
        "VMIE-WIN-11 before 4.5",
        {"VMIE-WIN-11": FAIL, "VMIE-WIN-12": FAIL},
        software(NDP + "\\v4\\Full", "Release", 378388),
    ),
    (
        "VMIE-WIN-12 3.5 SP1",
        {},
        {"software": {NDP + "\\v4\\Full": {"Release": None}, NDP + "\\v3.5": {"Install": 1, "SP": 1}}},
    ),
    (
        "VMIE-WIN-12 3.5 without SP1",
        {"VMIE-WIN-11": FAIL, "VMIE-WIN-12": FAIL},
        {"software": {NDP + "\\v4\\Full": {"Release": None}, NDP + "\\v3.5": {"Install": 1, "SP": 0}}},
    ),
    ("VMIE-WIN-13", {"VMIE-WIN-13": FAIL}, software(VERSION + "\\Winlogon", "AutoAdminLogon", "1")),
    (
        "VMIE-WIN-14",
        {"VMIE-WIN-14": FAIL},
        software(CURRENT + "\\WindowsUpdate\\Auto Update", "AUOptions", 3),
    ),
    (
        "VMIE-WIN-14 by policy",
        {"VMIE-WIN-14": FAIL},
        software(POLICIES + "\\Windows\\WindowsUpdate\\AU", "AUOptions", 3),
    ),
    ("VMIE-WIN-15 components", {"VMIE-WIN-15": FAIL}, {"software": {COMPONENTS + "\\RebootPending": {}}}),
    (
        "VMIE-WIN-15 updates",
        {"VMIE-WIN-15": FAIL},
        {"software": {CURRENT + "\\WindowsUpdate\\Auto Update\\RebootRequired": {}}},
    ),
    (
        "VMIE-WIN-15 packages",
        {"VMIE-WIN-15": FAIL},
        {"software": {COMPONENTS + "\\PackagesPending\\Package_for_KB5005030": {}}},
    ),
    (
        "VMIE-WIN-15 renames",
        {"VMIE-WIN-15": FAIL},
        system(CONTROL + "\\Session Manager", "PendingFileRenameOperations", ["\\??\\C:\\Temp\\x"]),
    ),
    ("VMIE-WIN-15 run once", {"VMIE-WIN-15": FAIL}, software(CURRENT + "\\RunOnce", "setup", "C:\\setup.exe")),
    (
        "VMIE-WIN-15 pending.xml",
        {"VMIE-WIN-15": FAIL},
        {"files": {"/Windows/WinSxS/pending.xml": b"<PendingTransaction/>"}},
    ),
    (
        "VMIE-WIN-16 and 17",
        {"VMIE-WIN-16": FAIL, "VMIE-WIN-17": FAIL},
        {"software": SERVER_2008_R2},
    ),
    (
        "VMIE-WIN-16 and 17 installed",
        {"VMIE-WIN-16": PASS, "VMIE-WIN-17": PASS},
        {
            "software": {
                **SERVER_2008_R2,
                COMPONENTS + "\\Packages\\Package_for_KB2922223~31bf3856ad364e35~amd64~~6.1.1.1": {
                    "CurrentState": 0x70
                },
                COMPONENTS + "\\Packages\\Package_for_KB2800213~31bf3856ad364e35~amd64~~6.1.1.0": {
                    "CurrentState": 0x70
                },
            }
        },
    ),
    (
        "VMIE-WIN-17 staged",
        {"VMIE-WIN-16": FAIL, "VMIE-WIN-17": FAIL},
        {"software": {**SERVER_2008_R2, COMPONENTS + "\\Packages\\Package_for_KB2800213": {"CurrentState": 0x40}}},
    ),
    ("VMIE-WIN-18 off", {"VMIE-WIN-18": FAIL}, system(CONTROL + "\\TimeZoneInformation", "RealTimeIsUniversal", 0)),
    (
        "VMIE-WIN-18 not set",
        {"VMIE-WIN-18": FAIL},
        system(CONTROL + "\\TimeZoneInformation", "RealTimeIsUniversal", None),
    ),
    ("VMIE-WIN-19 and 20", NOT_GENERALIZED, {"software": USED_SYSTEM}),
    (
        "VMIE-WIN-22",
        {"VMIE-WIN-22": PASS, "VMIE-WIN-23": PASS},
        {"files": {PANTHER: ANSWER_FILE.encode()}},
    ),
    (
        "VMIE-WIN-22 processor",
        {"VMIE-WIN-22": FAIL, "VMIE-WIN-23": PASS},
        {"files": {PANTHER: ANSWER_FILE.replace("amd64", "x86").encode()}},
    ),
    (
        "VMIE-WIN-22 pass",
        {"VMIE-WIN-22": FAIL, "VMIE-WIN-23": PASS},
        {"files": {PANTHER: ANSWER_FILE.replace("oobeSystem", "specialize").encode()}},
    ),
    (
        "VMIE-WIN-22 not well-formed",
        {"VMIE-WIN-22": FAIL, "VMIE-WIN-23": PASS},
        {"files": {PANTHER: ANSWER_FILE.encode()[:-5]}},
    ),
    (
        "VMIE-WIN-22 entities",
        {"VMIE-WIN-22": FAIL, "VMIE-WIN-23": PASS},
        {"files": {PANTHER: b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'}},
    ),
    (
        "VMIE-WIN-23",
        {**NOT_GENERALIZED, "VMIE-WIN-22": PASS, "VMIE-WIN-23": FAIL},
        {"software": USED_SYSTEM, "files": {PANTHER: ANSWER_FILE.encode()}},
    ),
    ("VMIE-WIN-24 in use", {"VMIE-WIN-24": FAIL}, {"state": frozenset({"unclean"})}),
    ("VMIE-WIN-24 hibernated", {"VMIE-WIN-24": FAIL}, {"files": {"/hiberfil.sys": b"HIBR" + bytes(508)}}),
    ("VMIE-WIN-24 resumed", {}, {"files": {"/hiberfil.sys": b"WAKE" + bytes(508)}}),
    ("VMIE-WIN-24 hive", {"VMIE-WIN-24": FAIL}, {"files": {HIVE_FOLDER + "SYSTEM": unclean(base_hive("SYSTEM"))}}),
    ("VMIE-WIN-25 DHCP", {"VMIE-WIN-25": FAIL, "VMIE-GEN-12": FAIL}, started("Dhcp", 4)),
    ("VMIE-WIN-25 TCP/IP", {"VMIE-WIN-25": FAIL, "VMIE-GEN-12": FAIL}, started("Tcpip", 4)),
    (
        "VMIE-WIN-25 static",
        {"VMIE-WIN-25": FAIL, "VMIE-GEN-13": FAIL},
        {"system": {INTERFACE: {"EnableDHCP": 0, "IPAddress": ["192.0.2.10"]}}},
    ),
    ("VMIE-WIN-26", {"VMIE-WIN-26": FAIL, "VMIE-GEN-09": FAIL}, started("CSAgent", 1)),
    (
        "VMIE-WIN-26 by its group",
        {"VMIE-WIN-26": FAIL, "VMIE-GEN-09": FAIL},
        {"system": {SERVICES + "\\newfilter": {"Start": 0, "Group": "FSFilter Anti-Virus"}}},
    ),
    (
        "VMIE-WIN-27 devices",
        {"VMIE-WIN-27": FAIL},
        software(POLICIES + "\\Windows\\DeviceInstall\\Restrictions", "DenyUnspecified", 1),
    ),
    (
        "VMIE-WIN-27 AppLocker",
        {"VMIE-WIN-27": FAIL},
        software(POLICIES + "\\Windows\\SrpV2\\Exe", "EnforcementMode", 1),
    ),
    (
        "VMIE-WIN-27 software restriction",
        {"VMIE-WIN-27": FAIL},
        software(POLICIES + "\\Windows\\Safer\\CodeIdentifiers", "DefaultLevel", 0),
    ),
    ("VMIE-WIN-27 FIPS", {"VMIE-WIN-27": FAIL}, system(CONTROL + "\\Lsa\\FipsAlgorithmPolicy", "Enabled", 1)),
    (
        "VMIE-WIN-27 code integrity",
        {"VMIE-WIN-27": FAIL},
        {"files": {"/Windows/System32/CodeIntegrity/SiPolicy.p7b": b"x"}},
    ),
    ("VMIE-WIN-28 two entries", {"VMIE-WIN-28": FAIL}, {"bcd": TWO_SYSTEMS}),
    (
        "VMIE-WIN-28 without waiting",
        {},
        {"bcd": {**TWO_SYSTEMS, f"Objects\\{BOOT_MANAGER}\\Elements\\25000004": {"Element": bytes(8)}}},
    ),
    ("VMIE-WIN-28 two active", {"VMIE-WIN-28": FAIL}, {"table": TWO_ACTIVE}),
    ("VMIE-WIN-29 directory", {"VMIE-WIN-29": FAIL}, {"system": {DIRECTORY: ON_D}}),
    (
        "VMIE-WIN-29 page file",
        {"VMIE-WIN-29": FAIL},
        paging("D:\\pagefile.sys 4096 4096"),
    ),
    (
        "VMIE-WIN-29 on a disk given",
        {},
        {"system": {DIRECTORY: ON_D, "MountedDevices": {"\\DosDevices\\D:": SECOND_PARTITION}}},
    ),
    (
        "VMIE-WIN-30 recovery",
        {"VMIE-WIN-30": FAIL},
        {
            "bcd": {
                f"Objects\\{BOOT_MANAGER}\\Elements\\23000003": {"Element": RECOVERY},
            }
        },
    ),
    (
        "VMIE-WIN-30 no recovery environment",
        {"VMIE-WIN-30": FAIL},
        {"bcd": {f"Objects\\{LOADER}\\Elements\\14000008": None}},
    ),
    (
        "VMIE-WIN-30 another program",
        {"VMIE-WIN-30": FAIL},
        {"bcd": bcd_object(LOADER, 0x10200003, {0x12000002: "\\Windows\\system32\\memtest.exe"})},
    ),
    ("VMIE-WIN-31 evaluation", {"VMIE-WIN-31": FAIL}, software(VERSION, "EditionID", "ServerDatacenterEval")),
    (
        "VMIE-WIN-31 preview",
        {"VMIE-WIN-31": FAIL},
        software(VERSION, "BuildLabEx", "17763.1.amd64fre.rs_prerelease.180914-1434"),
    ),
    (
        "VMIE-OS-05 build",
        {"VMIE-OS-05": FAIL},
        {"software": {VERSION: {"CurrentBuild": "18363", "CurrentBuildNumber": "18363"}}},
    ),
    ("VMIE-OS-05 edition", {"VMIE-OS-05": FAIL}, software(VERSION, "EditionID", "ServerAzureStackHCICor")),
    (
        "VMIE-OS-05 another version's edition",
        {"VMIE-OS-05": FAIL},
        software(VERSION, "EditionID", "ServerEnterprise"),
    ),
    (
        "VMIE-OS-05 32 bits",
        {"VMIE-OS-05": FAIL},
        {"files": {"/Windows/System32/ntoskrnl.exe": (PROGRAMS / "t32.exe").read_bytes()}},
    ),
    (
        "VMIE-OS-01 and 05 ARM64",
        {"VMIE-OS-01": FAIL, "VMIE-OS-05": FAIL},
        {"files": {"/Windows/System32/ntoskrnl.exe": (PROGRAMS / "t64-arm.exe").read_bytes()}},
    ),
    ("VMIE-OS-05 no kernel", {}, {"files": {"/Windows/System32/ntoskrnl.exe": None}}),
    (
        "VMIE-OS-06",
        {"VMIE-OS-06": FAIL, "VMIE-WIN-31": PASS, "VMIE-OS-12": "not-checked"},
        {"software": SERVER_2003},
    ),
    (
        "VMIE-OS-06 SP1",
        {"VMIE-OS-06": PASS, "VMIE-OS-12": "not-checked"},
        {"software": {VERSION: {**SERVER_2003[VERSION], "CSDVersion": "Service Pack 1"}}},
    ),
    (
        "VMIE-OS-05 Web Edition of 2003",
        {"VMIE-OS-05": FAIL, "VMIE-OS-06": FAIL, "VMIE-OS-12": "not-checked"},
        {"software": SERVER_2003, "system": {CONTROL + "\\ProductOptions": {"ProductSuite": ["Blade"]}}},
    ),
    (
        "VMIE-OS-05 and 06 2003 R2",
        {"VMIE-OS-12": "not-checked"},
        {
            "software": {VERSION: {**SERVER_2003[VERSION], "ProductName": "Microsoft Windows Server 2003 R2"}},
            "system": {CONTROL + "\\ProductOptions": {"ProductSuite": ["Enterprise", "Terminal Server"]}},
        },
    ),
    ("VMIE-OS-07", {"VMIE-OS-07": FAIL}, software(VERSION + "\\Server\\ServerLevels", "NanoServer", 1)),
    (
        "VMIE-OS-08",
        {**CLIENT_CHANGES, "VMIE-OS-08": FAIL, "VMIE-WIN-16": FAIL, "VMIE-WIN-17": FAIL, "VMIE-OS-10": PASS},
        {"software": WINDOWS_7, "system": {CONTROL + "\\Nls\\Language": {"Default": "0407"}}},
    ),
    (
        "VMIE-OS-08 US English",
        {**CLIENT_CHANGES, "VMIE-WIN-16": FAIL, "VMIE-WIN-17": FAIL, "VMIE-OS-10": PASS},
        {"software": WINDOWS_7},
    ),
    (
        "VMIE-OS-09 and 14",
        {**CLIENT_CHANGES, "VMIE-OS-09": FAIL, "VMIE-OS-14": "not-checked"},
        {"software": WINDOWS_11},
    ),
    (
        "VMIE-OS-08 sign-in screen",
        {**CLIENT_CHANGES, "VMIE-OS-08": FAIL, "VMIE-WIN-16": FAIL, "VMIE-WIN-17": FAIL, "VMIE-OS-10": PASS},
        {
            "software": WINDOWS_7,
            "files": {
                HIVE_FOLDER + "DEFAULT": make_hive({"Control Panel\\Desktop": {"PreferredUILanguages": ["de-DE"]}})
            },
        },
    ),
    ("VMIE-GEN-01", {"VMIE-GEN-01": FAIL}, started("vmware-converter-agent", 2)),
    (
        "VMIE-GEN-02 two systems",
        {"VMIE-GEN-02": FAIL, "VMIE-WIN-28": FAIL},
        {"bcd": merged(TWO_SYSTEMS, bcd_object(SECOND_LOADER, 0x10200003, {0x21000001: b"another device"}))},
    ),
    (
        "VMIE-GEN-02 the rest of another",
        {"VMIE-GEN-02": FAIL},
        {"boot_files": {HIVE_FOLDER + "SYSTEM": base_hive("SYSTEM")}},
    ),
    (
        "VMIE-GEN-07",
        {"VMIE-GEN-07": FAIL, "VMIE-GEN-13": FAIL, "VMIE-WIN-25": FAIL},
        {
            "system": {
                INTERFACE: {"EnableDHCP": 0, "IPAddress": ["192.0.2.10"]},
                INTERFACE.replace("01}", "02}"): {"EnableDHCP": 0, "IPAddress": ["198.51.100.10"]},
            }
        },
    ),
    ("VMIE-GEN-10 a service", {"VMIE-GEN-10": FAIL}, started("VMTools", 2)),
    (
        "VMIE-GEN-10 a key",
        {"VMIE-GEN-10": FAIL},
        software("VMware, Inc.\\VMware Tools", "InstallPath", "C:\\Program Files\\VMware"),
    ),
    ("VMIE-GEN-14 ENA", {"VMIE-GEN-14": FAIL}, {"system": {SERVICES + "\\ena": None}}),
    (
        "VMIE-GEN-14 NVMe",
        {"VMIE-GEN-14": FAIL},
        {"system": {SERVICES + "\\AWSNVMe": None, SERVICES + "\\stornvme": None}},
    ),
    ("VMIE-BOOT-02 ntldr", {}, {"boot_files": old_boot(BOOT_INI)}),
    ("VMIE-WIN-05 of 2003", {"VMIE-WIN-05": FAIL}, {"boot_files": old_boot(BOOT_INI + b" /redirect\r\n")}),
    ("VMIE-WIN-28 of 2003", {"VMIE-WIN-28": FAIL}, {"boot_files": old_boot(BOOT_INI * 2)}),
    (
        "VMIE-WIN-28 of 2003, without waiting",
        {},
        {"boot_files": old_boot(BOOT_INI.replace(b"timeout=30", b"timeout=0") + BOOT_INI.rpartition(b"\n")[2])},
    ),
    ("VMIE-WIN-30 of 2003", {"VMIE-WIN-30": FAIL}, {"boot_files": old_boot(b"[operating systems]\r\n")}),
    ("VMIE-BOOT-02 UEFI", UEFI_BASE, {"scheme": "gpt"}),
    (
        "VMIE-BOOT-02 neither",
        {"VMIE-BOOT-02": FAIL, "VMIE-WIN-05": UNKNOWN, "VMIE-WIN-28": UNKNOWN, "VMIE-WIN-30": UNKNOWN},
        {"boot_files": {"/Boot/BCD": None}},
    ),
    (
        "VMIE-BOOT-02 another mode is asked for",
        {**UEFI_BASE, "VMIE-BOOT-02": FAIL, "VMIE-BOOT-11": FAIL, "VMIE-GEN-05": UNKNOWN},
        {"scheme": "gpt", "request": Request(boot_mode="legacy-bios")},
    ),
    ("VMIE-BOOT-03 not VHDX", {**UEFI_BASE, "VMIE-BOOT-03": FAIL}, BOTH_MODES),
    (
        "VMIE-BOOT-03 to 05 VHDX",
        {**UEFI_BASE, "VMIE-BOOT-03": PASS, "VMIE-BOOT-04": FAIL, "VMIE-BOOT-05": FAIL},
        {**BOTH_MODES, "disk_format": "vhdx"},
    ),
    (
        "VMIE-BOOT-05 UEFI alone",
        {**UEFI_BASE, "VMIE-BOOT-05": FAIL},
        {"scheme": "gpt", "disk_format": "vhdx"},
    ),
    (
        "VMIE-BOOT-03 to 05 asked for UEFI",
        {**UEFI_BASE, "VMIE-BOOT-03": PASS},
        {**BOTH_MODES, "disk_format": "vhdx", "request": Request(boot_mode="uefi")},
    ),
    (
        "VMIE-BOOT-03 four partitions",
        {**UEFI_BASE, "VMIE-BOOT-03": FAIL},
        {
            **BOTH_MODES,
            "disk_format": "vhdx",
            "table": HYBRID_GPT.replace("start=239616,", "start=239616, size=2048000,")
            + "start=2287616, type=de94bba4-06d1-4d40-a16a-bfd50179d6ac\n",
        },
    ),
    (
        "VMIE-BOOT-03 dynamic disk",
        {**UEFI_BASE, "VMIE-BOOT-03": FAIL},
        {
            **BOTH_MODES,
            "disk_format": "vhdx",
            "table": HYBRID_GPT.replace("ebd0a0a2-b9e5-4433-87c0-68b6b72699c7", "af9b60a0-1431-4f62-bc68-3311714a69ad"),
        },
    ),
]


@functools.cache
def base_statuses() -> Mapping[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        return {name: result.status.value for name, result in _results(Path(folder), {}).items()}


def _results(folder: Path, change: dict[str, Any]) -> dict[str, Result]:
    found = results(windows_tree(folder, **change))
    return {name: result for name, result in found.items() if name.split("-")[1] in GROUPS}


def test_the_tree_keeps_every_rule_about_windows() -> None:
    broken = {name: status for name, status in base_statuses().items() if status in {FAIL, UNKNOWN}}

    assert not broken


@pytest.mark.parametrize(("expected", "change"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_one_change_concerns_just_these_rules(expected: dict[str, str], change: dict[str, Any], tmp_path: Path) -> None:
    base = base_statuses()

    found = _results(tmp_path, change)

    differing = {name: result for name, result in found.items() if result.status.value != base[name]}
    statuses = {name: result.status.value for name, result in differing.items()}
    assert statuses == {name: status for name, status in expected.items() if status != base[name]}
    broken = [result for result in differing.values() if result.status.value == FAIL]
    assert all(result.found for result in broken)
    # Nothing can be done about a processor.
    assert {result.rule.id for result in broken if result.refuses and not result.remedy} <= {"VMIE-OS-01"}


@pytest.mark.parametrize(
    ("rule", "change", "found", "remedy"),
    [
        (
            "VMIE-WIN-01",
            {"free": 6 * GIB - 1},
            "disk0p2 has 6442450943 of 41875931136 bytes free; 6442450944 are needed",
            "Free space before export.",
        ),
        (
            "VMIE-WIN-08",
            system(CONTROL + "\\Terminal Server", "fDenyTSConnections", 1),
            "SYSTEM\\ControlSet001\\Control\\Terminal Server: fDenyTSConnections is 1",
            (
                'enable it: reg add "HKLM\\SYSTEM\\CurrentControlSet\\Control\\Terminal Server" '
                "/v fDenyTSConnections /t REG_DWORD /d 0 /f"
            ),
        ),
        (
            "VMIE-WIN-19",
            {"software": USED_SYSTEM, "system": service("Amazon EC2Launch", 2)},
            'SOFTWARE\\Microsoft\\Windows\\CurrentVersion\\Setup\\State: ImageState is "IMAGE_STATE_COMPLETE"',
            (
                "%WINDIR%\\System32\\Sysprep\\sysprep.exe /oobe /generalize /shutdown, or run it after the import with "
                "EC2Launch, which is installed"
            ),
        ),
        (
            "VMIE-WIN-25",
            started("Dhcp", 4),
            "SYSTEM\\ControlSet001\\Services\\Dhcp: Start is 4 (disabled)",
            "sc config Dhcp start= auto",
        ),
        (
            "VMIE-WIN-05",
            {"bcd": bcd_object(LOADER, 0x10200003, {0x260000B0: b"\x01"})},
            f"disk0p1: /Boot/BCD\\Objects\\{LOADER}\\Elements\\260000b0 (ems) is 1",
            "bcdedit /ems off and bcdedit /bootems off",
        ),
    ],
)
def test_the_evidence_and_the_remedy(
    rule: str, change: dict[str, Any], found: str, remedy: str, tmp_path: Path
) -> None:
    result = _results(tmp_path, change)[rule]

    assert (result.found, result.remedy) == (found, remedy)


@pytest.mark.parametrize(
    ("rule", "change", "severity"),
    [
        ("VMIE-WIN-10", {"sam": account(1000, "user", flags=0x0014)}, Severity.WARNING),
        ("VMIE-WIN-10", {"sam": account(1000, "user", RC4_EMPTY)}, Severity.ERROR),
        ("VMIE-WIN-25", {"system": {INTERFACE: {"EnableDHCP": 0, "IPAddress": ["192.0.2.10"]}}}, Severity.WARNING),
        (
            "VMIE-WIN-07",
            {"bcd": bcd_object(LOADER, 0x10200003, {0x250000F0: struct.pack("<Q", 1)})},
            Severity.INFO,
        ),
        ("VMIE-WIN-26", {"system": with_firewall(RDP_RULE)}, Severity.INFO),
        ("VMIE-WIN-29", paging("D:\\pagefile.sys 4096 4096"), Severity.WARNING),
        ("VMIE-WIN-29", {"system": {DIRECTORY: ON_D}}, Severity.ERROR),
    ],
)
def test_what_matters_less_says_so(rule: str, change: dict[str, Any], severity: Severity, tmp_path: Path) -> None:
    assert _results(tmp_path, change)[rule].severity is severity


def test_another_disk_does_not_count_with_import_instance(tmp_path: Path) -> None:
    change = {
        "system": {DIRECTORY: ON_D, "MountedDevices": {"\\DosDevices\\D:": SECOND_PARTITION}},
        "request": Request(Operation.IMPORT_INSTANCE),
    }

    assert _results(tmp_path, change)["VMIE-WIN-29"].status.value == FAIL


def test_a_damaged_hive_leaves_its_rules_unknown_and_the_others_decided(tmp_path: Path) -> None:
    found = _results(tmp_path, {"files": {HIVE_FOLDER + "SOFTWARE": b"regf" + bytes(8188)}})

    assert found["VMIE-WIN-13"].status.value == UNKNOWN
    assert "disk0p2: /Windows/System32/config/SOFTWARE: offset 0x14: version 0.0" in found["VMIE-WIN-13"].found
    assert found["VMIE-WIN-18"].status.value == PASS


def test_every_check_about_windows_has_a_case_that_fails_and_one_that_passes() -> None:
    ours = {
        name for name, found in checks().items() if found.function.__module__.rpartition(".")[2].startswith("windows")
    }
    failing = {name for _, expected, _ in CASES for name, status in expected.items() if status == FAIL}
    passing = {name for name, status in base_statuses().items() if status == PASS}
    passing |= {name for _, expected, _ in CASES for name, status in expected.items() if status == PASS}

    only_states = {"VMIE-WIN-04", "VMIE-WIN-20"}
    assert ours - failing == only_states
    assert ours <= passing
    assert len(ours) > 35
