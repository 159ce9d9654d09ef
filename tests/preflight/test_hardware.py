"""What an OVF descriptor says of network cards and drives."""

from pathlib import Path

import pytest

from tests.preflight.checking import appliance, item, qemu_image, result_of, status_of

ETHERNET, CD, DVD = 10, 15, 16


def packed(folder: Path, *items: str) -> Path:
    return appliance(folder / "vm.ova", [qemu_image(folder / "disk.vmdk", "vmdk")], "".join(items))


@pytest.mark.parametrize(("count", "status"), [(0, "pass"), (1, "pass"), (2, "fail"), (9, "fail")])
def test_network_interfaces(tmp_path: Path, count: int, status: str) -> None:
    found = result_of(packed(tmp_path, *(item(50 + n, ETHERNET) for n in range(count))), "VMIE-GEN-07")
    assert found.status.value == status
    if status == "fail":
        assert f"vm.ovf: {count} network interfaces (InstanceID 50, 51" in found.found


def test_a_bare_disk_says_nothing_of_its_machine(tmp_path: Path) -> None:
    path = qemu_image(tmp_path / "disk.vmdk", "vmdk")
    assert status_of(path, "VMIE-GEN-07") == "unknown"
    assert status_of(path, "VMIE-GEN-11") == "not-checked"


@pytest.mark.parametrize(
    ("items", "status"),
    [
        ([], "pass"), ([item(60, CD, AutomaticAllocation="false")], "pass"), ([item(60, DVD)], "pass"),
        ([item(60, CD, AutomaticAllocation="true")], "fail"), ([item(60, DVD, AutomaticAllocation="True")], "fail"),
        ([item(60, CD, AutomaticAllocation="false", HostResource="ovf:/file/f0")], "fail"),
        ([item(60, ETHERNET, AutomaticAllocation="true")], "pass"),
    ],
)  # fmt: skip
def test_drives(tmp_path: Path, items: list[str], status: str) -> None:
    found = result_of(packed(tmp_path, *items), "VMIE-GEN-11")
    assert found.status.value == status
    if status == "fail":
        assert found.found.startswith("vm.ovf: the drive with InstanceID 60")
