"""Boot code, EFI programs and GRUB's files: what the programs that make them have made."""

import dataclasses
import subprocess
from pathlib import Path

import pytest

from diskfs.disks.opening import open_source
from diskfs.guest.files import Volume
from diskfs.guest.folder_files import FolderFiles
from diskfs.preflight.boot import BootFacts
from diskfs.preflight.boot.boot_code import identify_boot_code, read_boot_code
from diskfs.preflight.boot.efi import pe_machine, read_efi_partition
from diskfs.preflight.boot.grub_files import find_grub_files
from diskfs.preflight.linux.grub_menu import is_stub
from diskfs_formats.source import MemorySource
from tests.preflight.linux_guest import CONFIG, GRUB_PC, STUB, core_image, install_grub, make_disk


def _sector(code: bytes) -> bytes:
    return code.ljust(510, b"\0")[:510] + b"\x55\xaa"


def test_grubs_own_boot_sector_is_known_and_leads_to_the_next_part() -> None:
    boot = (GRUB_PC / "boot.img").read_bytes()
    core = core_image("i386-pc", "biosdisk")
    code = read_boot_code(MemorySource(boot + core))
    assert (code.kind, code.next_sector, code.has_next) == ("grub2", 1, True)
    assert read_boot_code(MemorySource(boot)).has_next is False
    assert read_boot_code(MemorySource(boot + bytes(512))).has_next is False
    assert read_boot_code(MemorySource(boot[:100])).kind == ""


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (b"", ""),
        (b"\xfa\xebLILO", "lilo"),
        (b"\xeb\x3c\x90SYSLINUX", "syslinux"),
        (b"\xeb\x3c\x90EXTLINUX", "syslinux"),
        (b"\x33\xc0Invalid partition table\0Missing operating system\0", "windows"),
        (b"\x33\xc0Missing operating system.\r\n", "generic"),
        (b"\x33\xc0", "other"),
    ],
)
def test_other_boot_code_is_told_apart(code: bytes, kind: str) -> None:
    assert identify_boot_code(_sector(code)) == kind


def test_grub_legacy_is_told_by_its_version() -> None:
    code = bytearray(_sector(b"\xeb\x48\x90"))
    code[0x3E:0x40] = b"\x03\x02"
    code[0x180:0x190] = b"GRUB \0Geom\0Hard "
    code[0x44:0x48] = (1).to_bytes(4, "little")
    found = read_boot_code(MemorySource(bytes(code) + b"x" * 512))
    assert (found.kind, found.next_sector, found.has_next) == ("grub-legacy", 1, True)


def test_the_active_partition_counts_where_the_boot_code_starts_it(tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    make_disk(disk, uefi=False)
    assert "GRUB" in _boot(disk).bios_reason
    data = bytearray(disk.read_bytes())
    data[:440] = _sector(b"\x33\xc0Missing operating system.\r\n")[:440]
    disk.write_bytes(data)
    assert _boot(disk).bios_reason == ""
    data[1 << 20 : (1 << 20) + 512] = _sector(b"\xeb\x58\x90code")
    disk.write_bytes(data)
    assert "active partition 1" in _boot(disk).bios_reason
    install_grub(disk)
    assert _boot(disk).boot_disk == 0


def _boot(disk: Path, *volumes: Volume, mode: str | None = None) -> BootFacts:
    with open_source(str(disk)) as source:
        facts = BootFacts(source.disks, volumes, mode)
        assert facts.disks
        assert facts.bios_reason is not None
    return facts


@pytest.mark.parametrize(("target", "machine"), [("x86_64-efi", "x86_64"), ("i386-pc", "")])
def test_the_machine_of_an_efi_program(target: str, machine: str, tmp_path: Path) -> None:
    data = core_image(target, "part_gpt")
    assert pe_machine(data[:4096]) == machine
    if machine:
        path = tmp_path / "program"
        path.write_bytes(data)
        said = subprocess.run(["file", path], check=True, capture_output=True, text=True).stdout
        assert "PE32+ executable (EFI application) x86-64" in said


def _esp(folder: Path, *names: str) -> Volume:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(core_image("x86_64-efi", "part_gpt"))
    files = FolderFiles(folder, kind="vfat", volume="disk0p1", ignore_case=True)
    return Volume("disk0p1", 0, 1, 1 << 20, 16 << 20, "vfat", files)


def test_the_programs_of_an_efi_system_partition(tmp_path: Path) -> None:
    names = ("EFI/boot/bootx64.efi", "EFI/Microsoft/Boot/bootmgfw.efi", "EFI/debian/shimx64.efi", "other.efi")
    found = read_efi_partition(_esp(tmp_path, *names))
    assert sorted(one.path for one in found.programs) == [f"/{name}" for name in sorted(names[:3])]
    assert found.fallback is not None
    assert found.fallback.path == "/EFI/boot/bootx64.efi"
    assert len(found.loaders) == 3


def test_an_efi_system_partition_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    volume = dataclasses.replace(_esp(tmp_path), files=None, problem="the FAT is damaged")
    assert read_efi_partition(volume).problem == "the FAT is damaged"


@pytest.mark.parametrize(
    ("fallback", "mode", "expected"),
    [(True, None, "uefi"), (True, "legacy-bios", "legacy-bios"), (False, None, None), (False, "uefi", "uefi")],
)
def test_the_predicted_mode(tmp_path: Path, fallback: bool, mode: str | None, expected: str | None) -> None:
    disk = tmp_path / "disk.raw"
    make_disk(disk, uefi=True)
    esp = _esp(tmp_path / "esp", *(["EFI/BOOT/BOOTX64.EFI"] if fallback else ["EFI/BOOT/x.txt"]))
    with open_source(str(disk)) as source:
        boot = BootFacts(source.disks, [esp], mode)
        assert boot.predicted_mode == expected
        assert boot.fits == (frozenset({"uefi"}) if fallback else frozenset())
        assert boot.likely_platform == ("efi" if expected == "uefi" else "pc")


def test_stubs_are_told_from_configurations() -> None:
    assert is_stub(STUB.encode())
    assert not is_stub(CONFIG.read_bytes())
    assert not is_stub(b"set default=0\n")
    assert not is_stub(STUB.encode() + b"menuentry x { linux /y }\n")


def test_configurations_are_found_on_all_file_systems_without_links(tmp_path: Path) -> None:
    for name in (
        "boot/grub/grub.cfg",
        "boot/grub2/grub.conf",
        "grub/menu.lst",
        "boot/grub/i386-pc/grub.cfg",
        "home/grub.cfg",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "boot/grub/menu.lst").symlink_to("../../grub/menu.lst")
    (tmp_path / "boot/again").symlink_to("grub")
    files = FolderFiles(tmp_path, volume="disk0p1")
    volume = Volume("disk0p1", 0, 1, 0, 1, "ext4", files)
    found = find_grub_files([volume, dataclasses.replace(volume, files=None)])
    assert sorted(one.path for one in found) == ["/boot/grub/grub.cfg", "/boot/grub2/grub.conf", "/grub/menu.lst"]
