"""Guests made to be trouble: every file may hold anything, and the answer is findings, in bounded time."""

import itertools
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from diskfs.preflight.boot.boot_code import identify_boot_code
from diskfs.preflight.boot.efi import pe_machine
from diskfs.preflight.linux.elf import parse_elf
from diskfs.preflight.linux.firewall import judge_iptables, judge_nftables
from diskfs.preflight.linux.fstab import parse_fstab
from diskfs.preflight.linux.grub_config import run_config
from diskfs.preflight.linux.grub_legacy import parse_legacy, select_legacy
from diskfs.preflight.linux.grub_menu import is_stub, select_default
from diskfs.preflight.linux.grubenv import parse_bls, parse_grubenv
from diskfs.preflight.linux.initramfs import read_initramfs
from diskfs.preflight.linux.kernel_image import read_kernel_image
from diskfs.preflight.linux.network import (
    parse_ifcfg,
    parse_interfaces,
    parse_keyfile,
    parse_netplan,
    parse_networkd,
)  # fmt: skip
from diskfs.preflight.linux.ssh import parse_passwd
from diskfs.preflight.linux.text import decode, shell_assignments
from diskfs.preflight.rules.outcome import Status
from diskfs_formats.source import MemorySource
from tests.preflight.linux_guest import CONFIG, FILES, RELEASE, LinuxGuest, initramfs, kernel_image, make_guest

SECONDS = 20
"""What one hostile guest may take, with much to spare on a busy machine."""


def _grub(data: bytes) -> object:
    return select_default(run_config(decode(data), "/boot/grub/grub.cfg", read=lambda _: None, environment={}))


PARSERS: dict[str, tuple[Callable[[], bytes], Callable[[bytes], object]]] = {
    "fstab": (lambda: b"UUID=1 / ext4 defaults 0 1\nLABEL=\\040x / xfs ro\n", lambda data: parse_fstab(decode(data))),
    "grub.cfg": (CONFIG.read_bytes, _grub),
    "menu.lst": (
        lambda: b"default saved\ntitle x\nkernel (hd0,0)/vmlinuz a=b\ninitrd /i\n",
        lambda data: select_legacy(parse_legacy(decode(data), "/m"), decode(data)),
    ),
    "grubenv": (lambda: b"# GRUB Environment Block\na=b\\\nc\n####", lambda data: parse_grubenv(data, "/grubenv")),
    "BLS": (lambda: b"title x\nlinux /v\noptions $a\n", lambda data: parse_bls(decode(data), "/e/x.conf")),
    "initramfs": (initramfs, lambda data: read_initramfs(MemorySource(data), "/i")),
    "kernel": (kernel_image, lambda data: read_kernel_image(MemorySource(data))),
    "ELF": (lambda: FILES["/usr/bin/dash"], parse_elf),  # type: ignore[dict-item, return-value]  # bytes
    "boot code": (lambda: bytes(510) + b"\x55\xaa", identify_boot_code),
    "PE": (lambda: b"MZ" + bytes(58) + b"\x40\0\0\0PE\0\0\x64\x86" + bytes(100), pe_machine),
    "stub": (lambda: b"search.fs_uuid 1 root\nset prefix=($root)/x\nconfigfile $prefix/g\n", is_stub),
    "ifcfg": (lambda: b"DEVICE=eth0\nIPADDR='1'\n", lambda data: list(parse_ifcfg(decode(data), "/ifcfg-x"))),
    "interfaces": (
        lambda: b"iface x inet static\naddress 1\n", lambda data: list(parse_interfaces(decode(data), "/x"))
    ),
    "netplan": (
        lambda: b"network:\n  ethernets:\n    eth0: {addresses: [1/2], dhcp4: true}\n",
        lambda data: list(parse_netplan(decode(data), "/x")),
    ),
    "keyfile": (lambda: b"[ipv4]\nmethod=manual\naddress1=1\n", lambda data: list(parse_keyfile(decode(data), "/x"))),
    "networkd": (
        lambda: b"[Match]\nName=x\n[Network]\nAddress=1\n", lambda data: list(parse_networkd(decode(data), "/x"))
    ),
    "passwd": (lambda: b"a:x:1:1::/h:/bin/sh\n", lambda data: list(parse_passwd(decode(data)))),
    "iptables": (
        lambda: b"*filter\n:INPUT DROP [0:0]\n-A INPUT -p tcp --dport 22 -j ACCEPT\n",
        lambda data: judge_iptables(decode(data), "/x", (22,)),
    ),
    "nftables": (
        lambda: b"hook input policy drop;\ntcp dport { 22 } accept\n",
        lambda data: judge_nftables(decode(data), "/x", (22,)),
    ),
    "assignments": (lambda: b"A=\"b\\\"c\" # x\nexport B='d'\n", lambda data: shell_assignments(decode(data))),
}  # fmt: skip


@pytest.mark.parametrize("name", PARSERS)
def test_no_mutation_raises(name: str) -> None:
    make, parse = PARSERS[name]
    original = make()
    source = random.Random(name)
    for _ in range(30 if len(original) > 4000 else 120):
        data = bytearray(original)
        for _ in range(source.randrange(1, 8)):
            place = source.randrange(len(data) + 1)
            match source.randrange(4):
                case 0:
                    data[place : place + 1] = source.randbytes(1)
                case 1:
                    del data[place : place + source.randrange(1, 40)]
                case 2:
                    data[place:place] = source.choice(
                        [b"\0", b"{", b"}", b"$", b'"', b"'", b"\n", b"=", b"\xff\xfe", b"9" * 30]
                    )
                case _:
                    data[place:place] = data[: source.randrange(len(data) + 1)][:4000]
        parse(bytes(data))


def _many_files(guest: LinuxGuest) -> None:
    for index in range(100):
        guest.write(f"/etc/netplan/{index}.yaml", "network: {ethernets: {a: {addresses: [1]}}}\n" * 200)
        guest.write(f"/etc/systemd/system/{index}.wants/x", "")


def _links(guest: LinuxGuest) -> None:
    guest.link("/etc/fstab", "mtab")
    guest.link("/etc/mtab", "fstab")


def _many_conditions(guest: LinuxGuest) -> None:
    condition = "if [ -f /boot/initrd.img ]; then true; fi\n"
    guest.write(GRUB_CFG, "function f {\n" + condition * 2_000 + "}\n" + "f\n" * 100)


def _chains(guest: LinuxGuest) -> None:
    names = ["INPUT", *(f"C{index}" for index in range(1, 31))]
    rules = "".join(f"-A {one} -j {two}\n" * 300 for one, two in itertools.pairwise(names))
    guest.write("/etc/sysconfig/iptables", f"*filter\n{rules}")
    guest.write("/usr/lib/systemd/system/iptables.service", "")
    wants = "/etc/systemd/system/multi-user.target.wants"
    guest.link(f"{wants}/iptables.service", "/lib/systemd/system/iptables.service")


def _includes(guest: LinuxGuest) -> None:
    for index in range(30):
        guest.write(f"/etc/ssh/sshd_config.d/{index}.conf", "Include sshd_config.d/*.conf\n" * 50)


def _binary(guest: LinuxGuest) -> None:
    for path in ("/etc/os-release", "/etc/passwd", "/etc/network/interfaces", "/boot/grub/grubenv"):
        guest.write(path, random.Random(path).randbytes(5000))


def _initramfs_folder(guest: LinuxGuest) -> None:
    guest.remove(f"/boot/initrd.img-{RELEASE}")
    guest.write(f"/boot/initrd.img-{RELEASE}/x", "")


def _many_users(guest: LinuxGuest) -> None:
    users = (f"u{index}:x:{1000 + index}:1::/home/{index}:/bin/sh\n" for index in range(5_000))
    guest.write("/etc/passwd", "".join(users))


GRUB_CFG = "/boot/grub/grub.cfg"
CHANGES: dict[str, Callable[[LinuxGuest], None]] = {
    "a huge fstab": lambda guest: guest.write("/etc/fstab", "/dev/sdz9 /a ext4 defaults 0 0\n" * 40_000),
    "an endless line": lambda guest: guest.write("/etc/fstab", "x" * (2 << 20)),
    "links in a circle": _links,
    "a circle of folders": lambda guest: guest.link("/boot/grub/grub", "../grub"),
    "a grub.cfg of braces": lambda guest: guest.write(GRUB_CFG, "menuentry a {" * 5_000),
    "a grub.cfg that grows": lambda guest: guest.write(GRUB_CFG, "function f { f; f; }\nf\n" + 'a="$a$a"\n' * 2000),
    "a grub.cfg that asks for files": _many_conditions,
    "a grub.cfg of quotes": lambda guest: guest.write(GRUB_CFG, '"$a' * 40_000),
    "chains of chains": _chains,
    "many users": _many_users,
    "many files": _many_files,
    "includes of includes": _includes,
    "binary files": _binary,
    "an initramfs that is a folder": _initramfs_folder,
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_hostile_guest_ends_in_findings(tmp_path: Path, name: str) -> None:
    guest = make_guest(tmp_path)
    CHANGES[name](guest)
    start = time.process_time()
    results = guest.results()
    assert time.process_time() - start < SECONDS
    assert any(status in {Status.FAIL, Status.UNKNOWN, Status.PASS} for status, _, _ in results.values())
    assert max(len(found) for _, _, found in results.values()) < 200_000
