"""Remedies are pasted into shells: names from the image must be words there and nothing more, and do what is said."""

import shlex
from pathlib import Path

import pytest

from diskfs.preflight.request import Operation
from diskfs.preflight.rules.catalogue import rules
from diskfs.preflight.rules.engine import Result, run, run_rule
from tests.preflight.checking import MIB, appliance, qemu_image, result_of
from tests.preflight.linux_guest import RELEASE, ROOT_UUID, LinuxGuest, core_image, make_guest


def _result(guest: LinuxGuest, rule: str) -> Result:
    with guest.facts() as facts:
        return next(result for result in run(facts) if result.rule.id == rule)


@pytest.fixture
def guest(tmp_path: Path) -> LinuxGuest:
    guest = make_guest(tmp_path, uefi=True)
    (guest.esp / "EFI/BOOT/BOOTX64.EFI").unlink()
    return guest


def test_the_name_of_an_entry_stays_a_word(guest: LinuxGuest) -> None:
    name = "$(touch x);a"
    guest.remove("/boot/grub")
    guest.write("/boot/grub2/grub.cfg", 'set default="${saved_entry}"\nload_env\nblscfg\n')
    guest.write("/boot/grub2/grubenv", "# GRUB Environment Block\n".ljust(1024, "#"))
    options = f"options root=UUID={ROOT_UUID} ro"
    guest.write(f"/boot/loader/entries/{name}.conf", f"title D\nlinux /boot/vmlinuz-{RELEASE}\n{options}\n")
    assert shlex.split(_result(guest, "VMIE-BOOT-09").remedy) == ["grub2-set-default", name]


def test_the_path_of_a_loader_stays_a_word(guest: LinuxGuest) -> None:
    (guest.esp / "EFI/debian").rename(guest.esp / "EFI/$(id) x")
    assert shlex.split(_result(guest, "VMIE-BOOT-06").remedy)[-2:] == [
        "./EFI/$(id) x/grubx64.efi",
        "./EFI/BOOT/BOOTX64.EFI",
    ]


def test_a_shim_is_copied_with_its_grub_and_nothing_else(guest: LinuxGuest) -> None:
    """Debian's shim-signed has fbx64.efi and mmx64.efi, which start no system, before them in the alphabet."""
    program = core_image("x86_64-efi", "part_gpt", "fat", "ext2", "configfile")
    for name in ("fbx64.efi", "mmx64.efi", "shimx64.efi"):
        (guest.esp / "EFI/debian" / name).write_bytes(program)
    assert _result(guest, "VMIE-BOOT-06").remedy == (
        "on the mounted partition: mkdir -p EFI/BOOT && cp ./EFI/debian/shimx64.efi ./EFI/BOOT/BOOTX64.EFI && "
        "cp ./EFI/debian/grubx64.efi ./EFI/BOOT/grubx64.efi"
    )


def test_no_loader_of_another_processor_is_copied(guest: LinuxGuest) -> None:
    (guest.esp / "EFI/debian/grubx64.efi").write_bytes(b"MZ")
    assert "cp " not in _result(guest, "VMIE-BOOT-06").remedy


def test_the_name_of_the_source_stays_a_word(tmp_path: Path) -> None:
    disk = tmp_path / "a b;c.raw"
    guest = make_guest(tmp_path / "guest")
    guest.disk.rename(disk)
    guest.disk = disk
    guest.remove("/etc/fstab")
    with guest.facts() as facts:
        result = run_rule(rules()["VMIE-SNAP-04"], facts.for_operation(Operation.IMPORT_SNAPSHOT))
    assert shlex.split(result.remedy)[3] == str(disk)


@pytest.mark.parametrize("operation", ["import-image", "import-snapshot", "import-instance"])
def test_what_diskfs_cannot_convert_gets_a_remedy_that_fits(tmp_path: Path, operation: str) -> None:
    path = tmp_path / "disk.qed"
    path.write_bytes(b"QED\0".ljust(MIB, b"\0"))
    rule = {"import-image": "VMIE-FMT-01", "import-snapshot": "VMIE-FMT-02", "import-instance": "VMIE-FMT-03"}[
        operation
    ]
    result = result_of(path, rule, operation)
    assert result.refuses
    assert "QED" in result.found
    assert result.remedy == "export the disk as VMDK (stream-optimized), VHD or raw"


def test_an_appliance_stays_one_for_import_image(tmp_path: Path) -> None:
    path = appliance(tmp_path / "vm.ova", [qemu_image(tmp_path / "one.vmdk", "vmdk")])
    assert result_of(path, "VMIE-FMT-04").remedy == f"diskfs convert {path} vm.ova -O ova"
    assert result_of(path, "VMIE-FMT-04", "import-snapshot").remedy == (
        f"diskfs convert {path} disk.vmdk --disk 0 -O vmdk --variant streamOptimized"
    )


def test_an_fstab_that_leads_in_a_circle_cannot_be_read(guest: LinuxGuest) -> None:
    guest.link("/etc/fstab", "/etc/fstab.real")
    guest.link("/etc/fstab.real", "/etc/fstab")
    result = _result(guest, "VMIE-LIN-12")
    assert result.refuses
    assert "they lead in a circle" in result.found
    assert result.remedy == "make /etc/fstab a file"
