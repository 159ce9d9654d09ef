"""Where and under which license Windows goes, and what of GRUB an export takes."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from diskfs.preflight.boot_mode import predict
from diskfs.preflight.request import Operation, Request
from diskfs.preflight.rules.catalogue import rules
from diskfs.preflight.rules.engine import run_rule
from diskfs.preflight.windows.version import CURRENT_VERSION as VERSION
from tests.preflight.linux_guest import LinuxGuest, install_grub, make_guest
from tests.preflight.test_windows_rules import SERVER_2003, WINDOWS_7, WINDOWS_11
from tests.preflight.windows_tree import PROGRAMS, windows_tree

SERVER_2022 = {VERSION: {"CurrentBuild": "20348", "CurrentBuildNumber": "20348", "ProductName": "Windows Server 2022"}}
SQL = "Microsoft\\Microsoft SQL Server"
SQL_STANDARD = {
    f"{SQL}\\Instance Names\\SQL": {"MSSQLSERVER": "MSSQL15.MSSQLSERVER"},
    f"{SQL}\\MSSQL15.MSSQLSERVER\\Setup": {"Edition": "Standard Edition"},
}
BITS_32 = {"files": {"/Windows/System32/ntoskrnl.exe": (PROGRAMS / "t32.exe").read_bytes()}}
CASES: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("VMIE-OS-09", {"software": WINDOWS_11}, {}, "fail"),
    ("VMIE-OS-09", {"software": WINDOWS_11, "scheme": "gpt"}, {"boot_mode": "uefi"}, "pass"),
    ("VMIE-OS-09", {"software": WINDOWS_11}, {"boot_mode": "uefi"}, "fail"),
    ("VMIE-OS-10", {"software": WINDOWS_7, **BITS_32}, {"region": "eu-south-1"}, "fail"),
    ("VMIE-OS-10", {"software": WINDOWS_7, **BITS_32}, {"region": "eu-west-1"}, "pass"),
    ("VMIE-OS-10", {"software": WINDOWS_7}, {"region": "eu-south-1"}, "pass"),
    ("VMIE-OS-12", {"software": SERVER_2003}, {"region": "af-south-1"}, "fail"),
    ("VMIE-OS-12", {"software": SERVER_2003}, {"region": "us-east-1"}, "pass"),
    ("VMIE-OS-12", {}, {"region": "af-south-1"}, "not-applicable"),
    ("VMIE-OS-13", {"software": SERVER_2022}, {"region": "cn-north-1"}, "fail"),
    ("VMIE-OS-13", {"software": SERVER_2022}, {"region": "us-east-1"}, "pass"),
    ("VMIE-OS-13", {"software": SERVER_2022}, {}, "not-checked"),
    ("VMIE-OS-13", {}, {"region": "cn-north-1"}, "not-applicable"),
    ("VMIE-OS-14", {"software": WINDOWS_11}, {"region": "ap-south-2"}, "fail"),
    ("VMIE-OS-14", {"software": WINDOWS_11}, {"region": "ap-south-1"}, "pass"),
    ("VMIE-LIC-03", {}, {"license_type": "AWS"}, "pass"),
    ("VMIE-LIC-03", {"software": WINDOWS_7}, {"license_type": "AWS"}, "fail"),
    ("VMIE-LIC-08", {"software": WINDOWS_7}, {"license_type": "AWS"}, "fail"),
    ("VMIE-LIC-08", {"software": WINDOWS_7}, {"license_type": "BYOL"}, "pass"),
    ("VMIE-LIC-08", {}, {"license_type": "AWS"}, "not-applicable"),
    ("VMIE-LIC-07", {"software": WINDOWS_7}, {}, "not-applicable"),
    ("VMIE-LIC-14", {"software": SQL_STANDARD}, {"usage_operation": "RunInstances:0006"}, "pass"),
    ("VMIE-LIC-14", {"software": SQL_STANDARD}, {"usage_operation": "RunInstances:0102"}, "fail"),
    ("VMIE-LIC-14", {"software": SQL_STANDARD}, {"usage_operation": "RunInstances:0002"}, "fail"),
    ("VMIE-LIC-14", {}, {"usage_operation": "RunInstances:0002"}, "pass"),
    ("VMIE-GEN-04", {}, {"platform": "Windows"}, "pass"),
    ("VMIE-GEN-04", {}, {"platform": "Linux"}, "fail"),
    ("VMIE-GEN-04", {"scheme": "gpt"}, {"from_snapshot": True}, "fail"),
    ("VMIE-GEN-04", {"scheme": "gpt"}, {"from_snapshot": True, "platform": "Windows"}, "pass"),
]


@pytest.mark.parametrize(("rule", "tree", "parameters", "status"), CASES)
def test_windows_and_the_request(
    tmp_path: Path, rule: str, tree: dict[str, Any], parameters: dict[str, Any], status: str
) -> None:
    with windows_tree(tmp_path, **tree, request=Request(**parameters)) as facts:
        found = run_rule(rules()[rule], facts)
    assert found.status.value == status, found.found


@pytest.mark.parametrize(("license_type", "status"), [(None, "not-checked"), ("BYOL", "fail"), ("AWS", "pass")])
def test_windows_as_an_instance(tmp_path: Path, license_type: str | None, status: str) -> None:
    request = Request(Operation.IMPORT_INSTANCE, license_type=license_type)
    with windows_tree(tmp_path, request=request) as facts:
        assert run_rule(rules()["VMIE-INST-02"], facts).status.value == status


def grub_guest(folder: Path, *, bios: bool, uefi: bool) -> LinuxGuest:
    """A Debian with GRUB in the MBR, on the EFI system partition, or in both places."""
    guest = make_guest(folder, uefi=uefi)
    if bios and uefi:
        layout = "label: dos\nstart=2048, size=16M, type=ef\ntype=83\n"
        subprocess.run(["sfdisk", "--quiet", "--wipe", "always", guest.disk], input=layout.encode(), check=True)
        install_grub(guest.disk)
    return guest


@pytest.mark.parametrize(
    ("bios", "uefi", "status"), [(True, False, "pass"), (False, True, "pass"), (True, True, "fail")]
)
def test_grub_for_both_modes_cannot_be_exported(tmp_path: Path, bios: bool, uefi: bool, status: str) -> None:
    guest = grub_guest(tmp_path, bios=bios, uefi=uefi)
    guest.request = Request(Operation.EXPORT_IMAGE)
    with guest.facts() as facts:
        found = run_rule(rules()["VMIE-EXP-14"], facts)
    assert found.status.value == status, found.found
    if status == "fail":
        assert "the MBR has GRUB" in found.found
        assert "BOOTX64.EFI" in found.found


@pytest.mark.parametrize(
    ("places", "asked", "mode", "reason"),
    [
        ("bios", None, "legacy-bios", "the only mode that fits: disk 0: the MBR has GRUB"),
        ("uefi", None, "uefi", "the only mode that fits: /EFI/BOOT/BOOTX64.EFI"),
        ("bios uefi", None, "legacy-bios", "both modes fit, and the guide has no rule for Linux"),
        ("bios uefi", "uefi", "uefi", "--boot-mode says so"),
    ],
)
def test_the_boot_mode_of_linux(tmp_path: Path, places: str, asked: str | None, mode: str, reason: str) -> None:
    guest = grub_guest(tmp_path, bios="bios" in places, uefi="uefi" in places)
    guest.request = Request(boot_mode=asked)
    with guest.facts() as facts:
        found = predict(facts)
    assert found.mode == mode
    assert found.reason.startswith(reason)
