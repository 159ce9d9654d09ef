"""VMIE-GEN, VMIE-LIC and their like over whole guests: a small Debian in a folder, and a Windows."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from diskfs.guest.files import Volume
from diskfs.guest.folder_files import FolderFiles
from diskfs.preflight.rules.engine import Result
from tests.preflight.checking import MIB, disk, result_of
from tests.preflight.windows_tree import SERVICES, results, windows_tree

ELF_64 = bytes.fromhex("7f454c46020101000000000000000000 0300 3e00 01000000").ljust(64, b"\0")
ELF_ARM = bytes.fromhex("7f454c46020101000000000000000000 0300 b700 01000000").ljust(64, b"\0")
KERNEL = "6.1.0-18-amd64"
GRUB = f"""set default=0
menuentry 'Debian' --id debian {{
 linux /boot/vmlinuz-{KERNEL} root=UUID=1 ro net.ifnames=0
 initrd /boot/initrd.img-{KERNEL}
}}
"""
DEBIAN: Mapping[str, str | bytes] = {
    "etc/os-release": 'ID=debian\nVERSION_ID="12"\nNAME="Debian GNU/Linux"\nPRETTY_NAME="Debian GNU/Linux 12"\n',
    "etc/debian_version": "12.4\n",
    "etc/fstab": "UUID=1 / ext4 defaults 0 1\n",
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
    "etc/network/interfaces": "auto eth0\niface eth0 inet dhcp\n",
    "sbin/dhclient": ELF_64,
    "bin/sh": ELF_64,
    "boot/grub/grub.cfg": GRUB,
    f"boot/vmlinuz-{KERNEL}": b"",
    f"lib/modules/{KERNEL}/modules.dep": "kernel/drivers/nvme/host/nvme.ko:\nkernel/drivers/net/ena/ena.ko:\n",
}


def debian(
    folder: Path, rule: str, operation: str = "import-image", *, request: Any = None, kind: str = "ext4",
    state: frozenset[str] = frozenset(), **files: Any,
) -> Result:  # fmt: skip
    """Run a rule over the Debian; `files` change it, `__` standing for `/`, None deleting."""
    root = folder / "root"
    content: dict[str, str | bytes | None] = {
        **DEBIAN,
        **{key.replace("__", "/"): value for key, value in files.items()},
    }
    for name, data in content.items():
        if data is not None:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data.encode() if isinstance(data, str) else data)
    image = disk(folder / "disk.raw", "label: dos\ntype=83,bootable\n")
    guest = Volume("disk0p1", 0, 1, MIB, 63 * MIB, kind, FolderFiles(root, kind=kind, state=state))
    return result_of(image, rule, operation, volumes=[guest], **(request or {}))


def check(found: Result, status: str, text: str = "", severity: str | None = None) -> None:
    assert (found.status.value, text in found.found) == (status, True), found.found
    assert severity in {None, found.severity.value}


@pytest.mark.parametrize(
    "case",
    [
        ("VMIE-GEN-01", {}, "pass", "", None),
        ("VMIE-GEN-01", {"etc__vmware-converter__x": ""}, "fail", "/etc/vmware-converter", "warning"),
        ("VMIE-GEN-02", {}, "pass", "disk0p1:/etc", None),
        (
            "VMIE-GEN-02",
            {"boot__grub__grub.cfg": GRUB + "menuentry 'Windows 10 (on /dev/sda2)' {\n chainloader +1\n}\n"},
            "fail", "'Windows 10 (on /dev/sda2)'", "error",
        ),
        ("VMIE-GEN-07", {}, "pass", "/etc/network/interfaces:2: eth0", None),
        (
            "VMIE-GEN-07", {"etc__network__interfaces": "iface eth0 inet dhcp\niface eth1 inet dhcp\n"}, "fail",
            "/etc/network/interfaces:2: eth1", "error",
        ),
        ("VMIE-GEN-09", {}, "pass", "", None),
        ("VMIE-GEN-10", {}, "pass", "", None),
        ("VMIE-GEN-10", {"usr__bin__vmware-uninstall-tools.pl": ""}, "fail", "VMware Tools", "warning"),
        ("VMIE-GEN-10", {"usr__bin__vmtoolsd": ELF_64}, "fail", "open-vm-tools", "info"),
        ("VMIE-GEN-11", {"etc__fstab": "UUID=1 / ext4 defaults 0 1\n/dev/sr0 /media/cdrom0 udf,iso9660 user 0 0\n"},
         "fail", "/etc/fstab:2: /dev/sr0", "warning"),
        ("VMIE-GEN-12", {}, "pass", "/sbin/dhclient", None),
        ("VMIE-GEN-12", {"sbin__dhclient": None}, "fail", "none of the known", "error"),
        ("VMIE-GEN-13", {}, "pass", "", None),
        ("VMIE-GEN-13", {"etc__network__interfaces": "iface eth0 inet static\n address 10.0.0.5/24\n"}, "fail",
         "/etc/network/interfaces:2: eth0 has the address 10.0.0.5/24", "info"),
        ("VMIE-GEN-14", {}, "pass", "modules.dep", None),
        ("VMIE-GEN-14", {f"lib__modules__{KERNEL}__modules.dep": "kernel/nvme.ko:\n"}, "fail", "ena", "warning"),
        ("VMIE-OS-01", {}, "pass", "/bin/sh", None),
        ("VMIE-OS-01", {"bin__sh": ELF_ARM}, "fail", "aarch64", "error"),
        ("VMIE-LIC-04", {}, "pass", "", None),
        ("VMIE-LIC-05", {}, "not-applicable", "Debian", None),
        ("VMIE-LIC-06", {}, "not-applicable", "Debian", None),
        ("VMIE-LIC-05", {"etc__os-release": 'ID="rhel"\nVERSION_ID="9.4"\nNAME="Red Hat Enterprise Linux"\n'}, "fail",
         "Red Hat Enterprise Linux 9.4", "warning"),
        ("VMIE-LIC-06", {"etc__os-release": 'ID="sles"\nVERSION_ID="15.5"\nNAME="SLES"\n'}, "fail", "SLES", "warning"),
        ("VMIE-LIC-09", {}, "pass", "BYOL", None),
        ("VMIE-FS-03", {}, "not-applicable", "", None),
    ],
    ids=lambda case: f"{case[0]} {case[2]}",
)  # fmt: skip
def test_debian(tmp_path: Path, case: tuple[str, dict[str, Any], str, str, str | None]) -> None:
    """Each case: rule, changes of the Debian, status, part of what is found, severity."""
    rule, files, status, text, severity = case
    check(debian(tmp_path, rule, **files), status, text, severity)


@pytest.mark.parametrize(
    ("rule", "request_", "status"),
    [
        ("VMIE-LIC-03", {"license_type": "BYOL"}, "pass"), ("VMIE-LIC-03", {"license_type": "AWS"}, "fail"),
        ("VMIE-LIC-04", {"license_type": "AWS"}, "fail"), ("VMIE-LIC-08", {"license_type": "AWS"}, "not-applicable"),
        ("VMIE-LIC-14", {}, "not-applicable"), ("VMIE-LIC-14", {"usage_operation": "RunInstances"}, "pass"),
        ("VMIE-LIC-14", {"usage_operation": "RunInstances:0004"}, "fail"),
        ("VMIE-GEN-04", {"platform": "Windows"}, "fail"), ("VMIE-GEN-04", {"platform": "Linux"}, "pass"),
        ("VMIE-GEN-04", {"from_snapshot": True}, "pass"),
    ],
)  # fmt: skip
def test_requests_for_debian(tmp_path: Path, rule: str, request_: dict[str, Any], status: str) -> None:
    check(debian(tmp_path, rule, request=request_), status)


@pytest.mark.parametrize(("state", "status"), [(frozenset[str](), "pass"), (frozenset({"subvolumes"}), "fail")])
def test_subvolumes_that_nothing_names(tmp_path: Path, state: frozenset[str], status: str) -> None:
    check(debian(tmp_path, "VMIE-FS-03", kind="btrfs", state=state), status, "disk0p1" if status == "fail" else "")


def test_sql_server_on_linux(tmp_path: Path) -> None:
    request = {"usage_operation": "RunInstances"}
    check(debian(tmp_path, "VMIE-LIC-14", request=request, opt__mssql__bin__sqlservr=ELF_64), "fail", "/opt/mssql")


def test_instance_types_for_linux(tmp_path: Path) -> None:
    for kind, status in (("t2.micro", "pass"), ("m5.large", "fail"), (None, "not-checked")):
        check(debian(tmp_path, "VMIE-INST-03", "import-instance", request={"instance_type": kind}), status)


def test_a_snapshot_of_a_guest_that_an_image_is_refused_for(tmp_path: Path) -> None:
    found = debian(tmp_path, "VMIE-SNAP-04", "import-snapshot", bin__sh=ELF_64, etc__fstab=None)
    assert found.status.value == "fail"
    assert "VMIE-LIN-" in found.found


WINDOWS_CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("VMIE-GEN-01", {}, "pass", ""),
    (
        "VMIE-GEN-01",
        {"system": {SERVICES + "\\vmware-converter-agent": {"Start": 2}}},
        "fail",
        "vmware-converter-agent",
    ),
    ("VMIE-GEN-02", {}, "pass", "/Windows/System32/config/SYSTEM"),
    ("VMIE-GEN-02", {"boot_files": {"/Windows/System32/config/SYSTEM": b"regf"}}, "fail", "disk0p1:/Windows"),
    ("VMIE-GEN-10", {}, "pass", ""),
    ("VMIE-GEN-10", {"system": {SERVICES + "\\VMTools": {"Start": 2}}}, "fail", "VMTools"),
    ("VMIE-GEN-12", {}, "pass", "Dhcp"),
    ("VMIE-GEN-12", {"system": {SERVICES + "\\Dhcp": {"Start": 4}}}, "fail", "Dhcp"),
    (
        "VMIE-GEN-14",
        {"system": {SERVICES + "\\ena": {"Start": 3}, SERVICES + "\\stornvme": {"Start": 0}}},
        "pass",
        "ena",
    ),
    ("VMIE-GEN-14", {"system": {SERVICES + "\\ena": None}}, "fail", "ena"),
    ("VMIE-OS-01", {}, "pass", "ntoskrnl.exe"),
    ("VMIE-LIC-07", {}, "pass", "AWS or BYOL"),
    ("VMIE-LIC-09", {}, "pass", "AWS"),
    ("VMIE-LIC-03", {}, "pass", ""),
    ("VMIE-FS-04", {}, "pass", "NTFS"),
]


@pytest.mark.parametrize(("rule", "changes", "status", "text"), WINDOWS_CASES)
def test_windows(tmp_path: Path, rule: str, changes: dict[str, Any], status: str, text: str) -> None:
    check(results(windows_tree(tmp_path, **changes))[rule], status, text)
