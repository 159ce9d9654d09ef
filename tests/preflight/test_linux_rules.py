"""Every rule about Linux guests: a guest that keeps them all, and one change at a time that breaks just one."""

import dataclasses
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from diskfs.guest.files import Volume
from diskfs.guest.folder_files import FolderFiles
from diskfs.preflight.request import Request
from diskfs.preflight.rules.outcome import Status
from tests.preflight.linux_guest import (
    CONFIG,
    EARLY,
    RELEASE,
    ROOT_UUID,
    LinuxGuest,
    another_system,
    changed,
    core_image,
    elf_program,
    initramfs,
    kernel_image,
    make_guest,
)  # fmt: skip

Results = dict[str, tuple[Status, str, str]]
Change = Callable[[LinuxGuest], None]

GRUB_CFG = "/boot/grub/grub.cfg"
INTERFACES = "/etc/network/interfaces"
WANTS = "/etc/systemd/system/multi-user.target.wants"

KEPT = {
    "VMIE-OS-01", "VMIE-OS-02", "VMIE-OS-03", "VMIE-FS-01", "VMIE-FS-02", "VMIE-BOOT-07", "VMIE-BOOT-08",
    "VMIE-BOOT-10", "VMIE-BOOT-11", "VMIE-LIN-01", "VMIE-LIN-02", "VMIE-LIN-03", "VMIE-LIN-04", "VMIE-LIN-05",
    "VMIE-LIN-06", "VMIE-LIN-07", "VMIE-LIN-08", "VMIE-LIN-09", "VMIE-LIN-11", "VMIE-LIN-12", "VMIE-LIN-13",
    "VMIE-LIN-14", "VMIE-LIN-15", "VMIE-LIN-16", "VMIE-LIN-17", "VMIE-GEN-02", "VMIE-GEN-03", "VMIE-GEN-05",
    "VMIE-GEN-09", "VMIE-GEN-10", "VMIE-GEN-12", "VMIE-GEN-13", "VMIE-GEN-14",
}  # fmt: skip
"""The rules that the guest must be seen to keep: not only not to break, for which a check that never ran would do."""


class Originals:
    """The guests as they were made, and how the rules fare on them; copied for every test."""

    def __init__(self, folder: Path) -> None:
        self.guests = {uefi: make_guest(folder / ("uefi" if uefi else "bios"), uefi=uefi) for uefi in (False, True)}
        self.results = {uefi: guest.results() for uefi, guest in self.guests.items()}

    def copy(self, folder: Path, *, uefi: bool) -> LinuxGuest:
        original = self.guests[uefi]
        for name in ("root", "esp"):
            if (original.root.parent / name).exists():
                shutil.copytree(original.root.parent / name, folder / "guest" / name, symlinks=True)
        return dataclasses.replace(original, root=folder / "guest/root", more=[])


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Originals:
    return Originals(tmp_path_factory.mktemp("linux"))


@pytest.mark.parametrize("uefi", [False, True], ids=["bios", "uefi"])
def test_a_prepared_guest_keeps_every_rule(originals: Originals, uefi: bool) -> None:
    results = originals.results[uefi]
    failing = {rule: found for rule, (status, _, found) in results.items() if status is Status.FAIL}
    failing.pop("VMIE-LIC-02", None)  # a warning about the request, which names no license
    unknown = {rule: found for rule, (status, _, found) in results.items() if status is Status.UNKNOWN}
    assert (failing, unknown) == ({}, {})
    kept = {rule for rule, (status, _, _) in results.items() if status is Status.PASS}
    assert kept >= (KEPT | {"VMIE-BOOT-06"} if uefi else KEPT)


def _write(path: str, content: str | bytes | Callable[[], bytes]) -> Change:
    """What a program has to make first is given as a function, so that it is not made when the tests are collected."""
    return lambda guest: guest.write(path, content() if callable(content) else content)


def _replace(path: str, old: str, new: str) -> Change:
    return lambda guest: guest.replace(path, old, new)


def _remove(path: str) -> Change:
    return lambda guest: guest.remove(path)


def _fstab(line: str) -> Change:
    return lambda guest: guest.write("/etc/fstab", (guest.root / "etc/fstab").read_text() + line + "\n")


def _both(*changes: Change) -> Change:
    def apply(guest: LinuxGuest) -> None:
        for change in changes:
            change(guest)

    return apply


def _set(**values: object) -> Change:
    def apply(guest: LinuxGuest) -> None:
        for name, value in values.items():
            setattr(guest, name, value)

    return apply


def _more(volume: Volume) -> Change:
    return lambda guest: guest.more.append(volume)


def _second_system(guest: LinuxGuest) -> None:
    guest.more.append(another_system(guest, guest.root.parent / "other"))


def _wipe(offset: int, length: int) -> Change:
    return _patch(offset, bytes(length))


def _patch(offset: int, data: bytes) -> Change:
    def apply(guest: LinuxGuest) -> None:
        # The disk is shared until something is written to it.
        disk = guest.root.parent / "disk.raw"
        subprocess.run(["cp", "--sparse=always", guest.disk, disk], check=True)
        guest.disk = disk
        with disk.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    return apply


IPTABLES = "*filter\n:INPUT DROP [0:0]\n-A INPUT -i lo -j ACCEPT\n-A INPUT -p tcp --dport {} -j ACCEPT\nCOMMIT\n"


def _iptables(port: str) -> Change:
    return _both(
        _write("/etc/iptables/rules.v4", IPTABLES.format(port)),
        _write("/usr/lib/systemd/system/netfilter-persistent.service", "[Unit]\n"),
        lambda guest: guest.link(
            f"{WANTS}/netfilter-persistent.service", "/lib/systemd/system/netfilter-persistent.service"
        ),
    )


def _ufw(rules: str) -> Change:
    return _both(
        _write("/etc/ufw/ufw.conf", "ENABLED=yes\n"),
        _write("/etc/default/ufw", 'DEFAULT_INPUT_POLICY="DROP"\n'),
        _write("/etc/ufw/user.rules", rules),
    )


def _service(name: str) -> Change:
    return _both(
        _write(f"/usr/lib/systemd/system/{name}.service", "[Unit]\n"),
        lambda guest: guest.link(f"{WANTS}/{name}.service", f"/lib/systemd/system/{name}.service"),
    )


BLS = f"""title Fedora Linux
version {RELEASE}
linux /boot/vmlinuz-{RELEASE}
initrd /boot/initrd.img-{RELEASE}
options $kernelopts
"""
BLS_CONFIG = """if [ -s $prefix/grubenv ]; then
  load_env
fi
set default="${saved_entry}"
insmod blscfg
blscfg
"""


def _bls(saved: str | None, config: str = BLS_CONFIG, size: int = 1024) -> Change:
    block = "# GRUB Environment Block\nkernelopts=root=UUID=" + ROOT_UUID + " ro net.ifnames=0\n"
    block += "" if saved is None else f"saved_entry={saved}\n"
    return _both(
        _write(GRUB_CFG, config),
        _write(f"/boot/loader/entries/0a1b-{RELEASE}.conf", BLS),
        _write("/boot/grub/grubenv", block.ljust(size, "#")),
    )


ENTRY = f"0a1b-{RELEASE}"
REL6 = "2.6.32-71.el6.x86_64"


def _rhel6(release: str) -> Change:
    return _both(
        _remove("/etc/os-release"),
        _remove("/etc/debian_version"),
        _remove("/var/lib/dpkg"),
        _remove(GRUB_CFG),
        _write("/etc/redhat-release", "Red Hat Enterprise Linux Server release 6.0 (Santiago)\n"),
        _write(
            "/boot/grub/grub.conf",
            f"default=0\ntimeout=5\ntitle RHEL ({release})\n\troot (hd0,0)\n\tkernel /boot/vmlinuz-{release} ro "
            f"root=UUID={ROOT_UUID} net.ifnames=0\n\tinitrd /boot/initramfs-{release}.img\n",
        ),
        _write(f"/boot/vmlinuz-{release}", kernel_image(release)),
        _write(f"/boot/initramfs-{release}.img", lambda: initramfs(compression="gzip", microcode=False)),
        _write(f"/usr/lib/modules/{release}/modules.dep", "kernel/drivers/nvme.ko:\nkernel/ena.ko:\n"),
    )


def _separate_boot(guest: LinuxGuest) -> None:
    """Move /boot to a file system of its own, where GRUB's paths begin at its root."""
    boot = guest.root.parent / "boot"
    (guest.root / "boot").rename(boot)
    (guest.root / "boot").mkdir()
    config = boot / "grub/grub.cfg"
    config.write_text(config.read_text().replace("/boot/vmlinuz", "/vmlinuz").replace("/boot/initrd", "/initrd"))
    files = FolderFiles(boot, uuid="0b0b0b0b-0000-4000-8000-000000000000", volume="disk0p2")
    guest.more.append(Volume("disk0p2", 0, 2, 32 << 20, 1 << 20, "ext4", files))
    _fstab("UUID=0b0b0b0b-0000-4000-8000-000000000000 /boot ext4 defaults 0 2")(guest)


def _full_boot(guest: LinuxGuest) -> None:
    _separate_boot(guest)
    (volume,) = guest.more
    assert isinstance(volume.files, FolderFiles)
    volume.files.free = (64 << 20) - 1


SWAP = Volume("disk0p5", 0, 5, 50 << 20, 1 << 20, "swap")

BIOS_CASES: dict[str, tuple[Change, dict[str, str]]] = {
    # Systems
    "arm64": (
        _both(*[_write(path, elf_program(machine=183)) for path in ("/usr/lib/systemd/systemd", "/usr/bin/dash")]),
        {"VMIE-OS-01": "fail"},
    ),
    "32-bit programs": (
        _write("/usr/lib/systemd/systemd", elf_program(bits=32, machine=3)), {"VMIE-LIN-01": "fail"}
    ),
    "32-bit kernel": (
        _write(f"/boot/vmlinuz-{RELEASE}", kernel_image(is_64_bit=False)), {"VMIE-LIN-01": "fail"}
    ),
    "unlisted release": (
        _write("/etc/debian_version", "12.5\n"), {"VMIE-OS-02": "fail", "VMIE-OS-03": "not-applicable"}
    ),
    "unknown distribution": (
        _write("/etc/os-release", "ID=gentoo\nNAME=Gentoo\nVERSION_ID=2.14\n"),
        {"VMIE-OS-02": "fail", "VMIE-OS-03": "not-applicable"},
    ),
    "no release files": (
        _both(_remove("/etc/os-release"), _remove("/etc/debian_version")),
        {
            "VMIE-OS-02": "fail", "VMIE-OS-03": "not-applicable", "VMIE-LIC-05": "unknown", "VMIE-LIC-06": "unknown",
        },
    ),
    "other kernel": (
        _write(f"/boot/vmlinuz-{RELEASE}", kernel_image("6.6.30-custom")),
        {
            "VMIE-OS-03": "fail", "VMIE-LIN-02": "fail", "VMIE-LIN-04": "fail", "VMIE-LIN-05": "fail",
            "VMIE-GEN-14": "fail",
        },
    ),
    "excluded kernel of RHEL 6": (_rhel6(REL6), {"VMIE-OS-04": "fail", "VMIE-LIC-05": "fail"}),
    "kernel of RHEL 6": (_rhel6("2.6.32-754.el6.x86_64"), {"VMIE-OS-04": "pass", "VMIE-LIC-05": "fail"}),
    "kernel of no package": (
        _write(f"/var/lib/dpkg/info/linux-image-{RELEASE}.list", "/.\n/boot\n"), {"VMIE-LIN-02": "fail"}
    ),
    # Space, drivers, shutdown
    "full root": (_set(free=100 << 20), {"VMIE-LIN-03": "fail"}),
    "just too full": (_set(free=(500 << 20) - 1), {"VMIE-LIN-03": "fail"}),
    "just enough space": (_set(free=500 << 20), {}),
    "space not told": (_set(free=None), {"VMIE-LIN-03": "unknown"}),
    "no ENA": (
        _replace(f"/usr/lib/modules/{RELEASE}/modules.dep", "kernel/drivers/net/ethernet/amazon/ena/ena.ko:\n", ""),
        {"VMIE-LIN-04": "fail", "VMIE-GEN-14": "fail"},
    ),
    "neither ENA nor NVMe": (
        _write(f"/usr/lib/modules/{RELEASE}/modules.dep", "kernel/drivers/block/virtio_blk.ko:\n"),
        {"VMIE-LIN-04": "fail", "VMIE-LIN-05": "fail", "VMIE-GEN-14": "fail"},
    ),
    "drivers built in": (
        _both(
            _write(f"/usr/lib/modules/{RELEASE}/modules.dep", "kernel/drivers/block/virtio_blk.ko:\n"),
            _write(f"/usr/lib/modules/{RELEASE}/modules.builtin", "kernel/nvme.ko\nkernel/net/ena.ko\n"),
            _write(f"/boot/initrd.img-{RELEASE}", lambda: initramfs(EARLY[4:])),
        ),
        {},
    ),
    "initramfs without NVMe": (
        _write(f"/boot/initrd.img-{RELEASE}", lambda: initramfs(EARLY[2:])), {"VMIE-LIN-04": "fail"}
    ),
    "journal not replayed": (_set(state=frozenset({"needs-journal-recovery"})), {"VMIE-LIN-11": "fail"}),
    "hibernated": (
        _more(dataclasses.replace(SWAP, filesystem="swsuspend")), {"VMIE-LIN-11": "fail"}
    ),
    # Network
    "predictable names": (
        _replace(GRUB_CFG, "net.ifnames=0 biosdevname=0 ", ""), {"VMIE-LIN-06": "fail"}
    ),
    "predictable names masked in udev": (
        _both(
            _replace(GRUB_CFG, "net.ifnames=0 biosdevname=0 ", ""),
            lambda guest: guest.link("/etc/udev/rules.d/80-net-setup-link.rules", "/dev/null"),
        ),
        {},
    ),
    "predictable name in interfaces": (_replace(INTERFACES, "eth0", "enp0s3"), {"VMIE-LIN-06": "fail"}),
    "static address": (
        _replace(INTERFACES, "eth0 inet dhcp", "eth0 inet static\n  address 192.0.2.7/24"), {"VMIE-GEN-13": "fail"}
    ),
    "two interfaces": (
        _write(INTERFACES, "auto eth0 eth1\niface eth0 inet dhcp\niface eth1 inet dhcp\n"), {"VMIE-GEN-07": "fail"}
    ),
    "no sshd": (_remove("/usr/sbin/sshd"), {"VMIE-LIN-07": "fail"}),
    "sshd not enabled": (_remove(f"{WANTS}/ssh.service"), {"VMIE-LIN-07": "fail"}),
    "sshd masked": (
        lambda guest: guest.link("/etc/systemd/system/ssh.service", "/dev/null"), {"VMIE-LIN-07": "fail"}
    ),
    "iptables without SSH": (_iptables("80"), {"VMIE-LIN-08": "fail"}),
    "iptables with SSH": (_iptables("22"), {}),
    "sshd on another port": (
        _both(_iptables("22"), _write("/etc/ssh/sshd_config", "Port 2222\n")), {"VMIE-LIN-08": "fail"}
    ),
    "ufw without SSH": (
        _ufw("*filter\n-A ufw-user-input -p tcp --dport 443 -j ACCEPT\nCOMMIT\n"), {"VMIE-LIN-08": "fail"}
    ),
    "ufw with SSH": (_ufw("*filter\n-A ufw-user-input -p tcp --dport 22 -j ACCEPT\nCOMMIT\n"), {}),
    "no key": (_remove("/home/admin/.ssh/authorized_keys"), {"VMIE-LIN-09": "fail"}),
    "key of root alone": (
        _both(
            _remove("/home/admin/.ssh/authorized_keys"),
            _write("/root/.ssh/authorized_keys", "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABgQ root\n"),
        ),
        {"VMIE-LIN-09": "fail"},
    ),
    "keys refused": (
        _write("/etc/ssh/sshd_config.d/10-x.conf", "PubkeyAuthentication no\n"), {"VMIE-LIN-09": "fail"}
    ),
    "user not allowed": (_write("/etc/ssh/sshd_config", "AllowUsers backup\n"), {"VMIE-LIN-09": "fail"}),
    "no DHCP client": (_remove("/usr/sbin/dhclient"), {"VMIE-GEN-12": "fail"}),
    "DHCP client masked": (
        _both(
            _remove("/usr/sbin/dhclient"),
            _write("/usr/lib/systemd/systemd-networkd", elf_program()),
            lambda guest: guest.link("/etc/systemd/system/systemd-networkd.service", "/dev/null"),
        ),
        {"VMIE-GEN-12": "fail"},
    ),
    "anti-virus": (_service("clamav-daemon"), {"VMIE-GEN-09": "fail"}),
    "VMware Tools": (_write("/usr/bin/vmware-uninstall-tools.pl", "#!/usr/bin/perl\n"), {"VMIE-GEN-10": "fail"}),
    # fstab and file systems
    "no fstab": (
        _both(_remove("/etc/fstab")), {"VMIE-LIN-12": "fail", "VMIE-LIN-16": "not-applicable"}
    ),
    "NUL bytes in fstab": (_write("/etc/fstab", bytes(512)), {"VMIE-LIN-12": "fail"}),
    "garbage line": (_fstab("garbage"), {"VMIE-LIN-12": "fail"}),
    "second system": (
        _second_system, {"VMIE-LIN-13": "fail", "VMIE-LIN-14": "fail", "VMIE-GEN-02": "fail"}
    ),
    "device name": (
        _write("/etc/fstab", "/dev/sda1 / ext4 errors=remount-ro 0 1\n"), {"VMIE-LIN-15": "fail"}
    ),
    "device name in the kernel's options": (
        _replace(GRUB_CFG, f"root=UUID={ROOT_UUID}", "root=/dev/sda1"), {"VMIE-LIN-15": "fail"}
    ),
    "unknown device": (
        _fstab("UUID=deadbeef-0000-4000-8000-000000000000 /data xfs defaults 0 0"), {"VMIE-LIN-16": "fail"}
    ),
    "second disk's name": (
        _fstab("/dev/sdb1 /data xfs defaults 0 0"), {"VMIE-LIN-15": "fail", "VMIE-LIN-16": "fail"}
    ),
    "cifs": (_fstab("//srv/share /mnt/s cifs credentials=/root/c 0 0"), {"VMIE-LIN-17": "fail"}),
    "vboxsf": (_fstab("share /media/sf vboxsf defaults 0 0"), {"VMIE-LIN-17": "fail"}),
    "nfs": (_fstab("srv:/x /mnt/x nfs defaults 0 0"), {}),
    "tmpfs": (_fstab("tmpfs /tmp tmpfs defaults 0 0"), {}),
    "CD-ROM": (_fstab("/dev/sr0 /media/cdrom0 udf,iso9660 user,noauto 0 0"), {"VMIE-GEN-11": "fail"}),
    "root on F2FS": (_set(kind="f2fs"), {"VMIE-FS-02": "fail", "VMIE-FS-01": "fail"}),
    "subvolume": (
        _both(_set(kind="btrfs"), _write("/etc/fstab", f"UUID={ROOT_UUID} / btrfs subvol=@ 0 0\n")),
        {"VMIE-FS-03": "fail"},
    ),
    "top level of Btrfs": (
        _both(_set(kind="btrfs"), _write("/etc/fstab", f"UUID={ROOT_UUID} / btrfs defaults 0 0\n")),
        {"VMIE-FS-03": "pass"},
    ),
    "LUKS": (_more(Volume("disk0p2", 0, 2, 32 << 20, 1 << 20, "crypto_LUKS")), {"VMIE-GEN-03": "fail"}),
    "incomplete volume group": (
        _both(
            _more(Volume("disk0p2", 0, 2, 32 << 20, 1 << 20, "LVM2_member")),
            _more(
                Volume(
                    "disk0p2:vg0/data", 0, 2, 0, 1 << 20, None, None, "its physical volume pv1 is not on these disks"
                )
            ),
        ),
        {"VMIE-FS-05": "fail", "VMIE-FS-01": "unknown"},
    ),
    "complete volume group": (
        _both(
            _more(Volume("disk0p2", 0, 2, 32 << 20, 1 << 20, "LVM2_member")),
            _more(Volume("disk0p2:vg0/data", 0, 2, 33 << 20, 1 << 20, "swap")),
        ),
        {"VMIE-FS-05": "pass"},
    ),
    # Boot
    "separate /boot": (_separate_boot, {}),
    "separate /boot, full": (_full_boot, {"VMIE-LIN-03": "fail"}),
    "no boot code": (
        _wipe(0, 440), {"VMIE-BOOT-11": "fail", "VMIE-GEN-05": "unknown"}
    ),
    "no core.img": (
        _wipe(512, 512), {"VMIE-BOOT-11": "fail", "VMIE-GEN-05": "unknown"}
    ),
    "LILO": (_patch(2, b"LILO".ljust(438, b"\x90")), {"VMIE-BOOT-07": "fail"}),
    "no grub.cfg": (
        _remove(GRUB_CFG),
        {"VMIE-BOOT-07": "fail", "VMIE-LIN-06": "unknown"},
    ),
    "two grub.cfg": (_write("/boot/grub2/grub.cfg", "set default=1\n" + CONFIG.read_text()), {"VMIE-BOOT-08": "fail"}),
    "two equal grub.cfg": (_write("/boot/backup/grub.cfg", CONFIG.read_text()), {}),
    "two menu.lst": (
        _both(_write("/boot/grub/menu.lst", "default 0\n"), _write("/grub/menu.lst", "default 1\n")),
        {"VMIE-BOOT-08": "fail"},
    ),
    "BLS": (_bls(ENTRY), {"VMIE-BOOT-09": "pass"}),
    "BLS without default": (_bls(None), {"VMIE-BOOT-09": "fail"}),
    "BLS with an unknown default": (_bls("0a1b-5.14.0"), {"VMIE-BOOT-09": "fail"}),
    "BLS with another default": (
        _bls(ENTRY, BLS_CONFIG.replace("${saved_entry}", "0")), {"VMIE-BOOT-09": "fail"}
    ),
    "BLS with a short grubenv": (_bls(ENTRY, size=1000), {"VMIE-BOOT-09": "fail"}),
    "no initramfs": (
        _remove(f"/boot/initrd.img-{RELEASE}"), {"VMIE-BOOT-10": "fail"}
    ),
    "cut initramfs": (
        _write(f"/boot/initrd.img-{RELEASE}", lambda: initramfs()[:-100]),
        {"VMIE-BOOT-10": "fail", "VMIE-LIN-04": "unknown"},
    ),
    "initramfs of text": (
        _write(f"/boot/initrd.img-{RELEASE}", "not an initramfs"), {"VMIE-BOOT-10": "fail", "VMIE-LIN-04": "unknown"}
    ),
    "other system in GRUB": (
        _write(GRUB_CFG, CONFIG.read_text() + 'menuentry "Windows 10 (on /dev/sda2)" {\n chainloader +1\n}\n'),
        {"VMIE-GEN-02": "fail"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BIOS_CASES)
def test_one_change_breaks_just_the_expected_rules(originals: Originals, tmp_path: Path, name: str) -> None:
    guest = originals.copy(tmp_path, uefi=False)
    change, expected = BIOS_CASES[name]
    change(guest)
    assert changed(originals.results[False], guest.results()) == expected


def _esp_remove(path: str) -> Change:
    return lambda guest: (guest.esp / path).unlink()


def _esp_write(path: str, content: Callable[[], bytes]) -> Change:
    def apply(guest: LinuxGuest) -> None:
        (guest.esp / path).parent.mkdir(parents=True, exist_ok=True)
        (guest.esp / path).write_bytes(content())

    return apply


def _efi_program() -> bytes:
    return core_image("x86_64-efi", "part_gpt")


UEFI_CASES: dict[str, tuple[Change, dict[str, str]]] = {
    "no BOOTX64.EFI": (_esp_remove("EFI/BOOT/BOOTX64.EFI"), {"VMIE-BOOT-06": "fail"}),
    "BOOTX64.EFI in other case": (
        _both(_esp_remove("EFI/BOOT/BOOTX64.EFI"), _esp_write("EFI/BOOT/bootx64.efi", _efi_program)), {}
    ),
    "BOOTX64.EFI for another processor": (
        _esp_write("EFI/BOOT/BOOTX64.EFI", lambda: core_image("i386-pc", "biosdisk")), {"VMIE-BOOT-06": "fail"}
    ),
    "no loader at all": (
        _both(_esp_remove("EFI/BOOT/BOOTX64.EFI"), _esp_remove("EFI/debian/grubx64.efi")),
        {"VMIE-BOOT-06": "not-applicable", "VMIE-BOOT-11": "fail", "VMIE-GEN-05": "unknown"},
    ),
    "systemd-boot": (
        _esp_write("EFI/systemd/systemd-bootx64.efi", _efi_program), {"VMIE-BOOT-07": "fail"}
    ),
    "a whole grub.cfg on the ESP": (
        _esp_write("EFI/debian/grub.cfg", lambda: CONFIG.read_bytes()[:-1]), {"VMIE-BOOT-08": "fail"}
    ),
    "the whole grub.cfg on the ESP alone": (
        _both(_remove(GRUB_CFG), _esp_write("EFI/debian/grub.cfg", CONFIG.read_bytes)), {}
    ),
    "a default kernel that only the grub.cfg on the ESP has": (
        _both(
            _esp_write("EFI/debian/grub.cfg", lambda: CONFIG.read_bytes().replace(b"6.1.0-50", b"6.6.0-50")),
            _write("/boot/vmlinuz-6.6.0-50-amd64", kernel_image("6.6.0-50-amd64")),
            _write("/boot/initrd.img-6.6.0-50-amd64", initramfs),
        ),
        {
            "VMIE-BOOT-08": "fail", "VMIE-OS-03": "fail", "VMIE-LIN-02": "fail", "VMIE-LIN-04": "fail",
            "VMIE-LIN-05": "fail", "VMIE-GEN-14": "fail",
        },
    ),
    "asked for BIOS": (
        _set(request=Request(boot_mode="legacy-bios")), {"VMIE-BOOT-11": "fail", "VMIE-GEN-05": "unknown"}
    ),
    "asked for UEFI": (_set(request=Request(boot_mode="uefi")), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", UEFI_CASES)
def test_one_change_breaks_just_the_expected_rules_of_uefi(originals: Originals, tmp_path: Path, name: str) -> None:
    guest = originals.copy(tmp_path, uefi=True)
    change, expected = UEFI_CASES[name]
    change(guest)
    assert changed(originals.results[True], guest.results()) == expected


def test_the_evidence_names_file_and_line(originals: Originals, tmp_path: Path) -> None:
    guest = originals.copy(tmp_path, uefi=False)
    guest.write(
        "/etc/fstab", f"# a comment\n\nUUID={ROOT_UUID} / ext4 defaults 0 1\n/dev/sdb1 /data xfs defaults 0 0\n"
    )
    guest.write(INTERFACES, "auto ens3\niface ens3 inet static\n    address 192.0.2.7\n")
    results = guest.results()
    assert results["VMIE-LIN-16"][2].startswith("/etc/fstab:4: /dev/sdb1")
    assert results["VMIE-LIN-06"][2].startswith("/etc/network/interfaces:2: the interface ens3")
    assert results["VMIE-GEN-13"][2].startswith("/etc/network/interfaces:3: ens3")
