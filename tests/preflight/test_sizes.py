"""VMIE-SIZE: disks on both sides of each limit, made by qemu-img, which writes next to nothing of them."""

from pathlib import Path

import pytest

from tests.preflight.checking import MIB, appliance, qemu_image, result_of, status_of

TIB = 1 << 40


@pytest.mark.parametrize(
    ("size", "rule", "operation", "status"),
    [
        (16 * TIB - MIB, "VMIE-SIZE-01", "import-snapshot", "pass"),
        (16 * TIB, "VMIE-SIZE-01", "import-snapshot", "fail"),
        (16 * TIB + MIB, "VMIE-SIZE-01", "import-image", "fail"),
        (8 * TIB, "VMIE-SIZE-02", "import-snapshot", "pass"),
        (8 * TIB + MIB, "VMIE-SIZE-02", "import-snapshot", "fail"),
        (8 * TIB - MIB, "VMIE-SIZE-03", "import-image", "pass"),
        (8 * TIB, "VMIE-SIZE-03", "import-image", "fail"),
        (8 * TIB, "VMIE-SIZE-04", "import-instance", "pass"),
        (16 * TIB, "VMIE-SIZE-04", "import-instance", "fail"),
    ],
)
def test_limits_of_a_disk(tmp_path: Path, size: int, rule: str, operation: str, status: str) -> None:
    found = result_of(qemu_image(tmp_path / "disk.vhdx", "vhdx", size), rule, operation)
    assert found.status.value == status
    if status == "fail":
        assert str(size) in found.found


def test_the_size_of_a_disk_that_cannot_be_opened_comes_from_its_descriptor(tmp_path: Path) -> None:
    qemu_image(tmp_path / "disk.vmdk", "vmdk", 5 * MIB, subformat="monolithicFlat")
    (tmp_path / "disk-flat.vmdk").unlink()
    assert f"has {5 * MIB} bytes" in result_of(tmp_path / "disk.vmdk", "VMIE-SIZE-01").found


@pytest.mark.parametrize(("count", "status"), [(21, "pass"), (22, "fail")])
def test_a_vm_has_at_most_21_disks(tmp_path: Path, count: int, status: str) -> None:
    disks = []
    for number in range(count):
        disks.append(tmp_path / f"disk{number:02}.raw")
        disks[-1].write_bytes(bytes([number]) * 4096)
    assert status_of(appliance(tmp_path / "vm.ova", disks), "VMIE-SIZE-05") == status
