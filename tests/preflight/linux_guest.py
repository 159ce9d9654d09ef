"""A complete Debian 12 guest that breaks no rule, as a folder beside a disk, and how a change shows in the rules.

What can be had from real programs is: the partition table is sfdisk's, boot code and EFI programs are GRUB's,
initramfs are made by cpio and zstd, grub.cfg is what grub-mkconfig wrote on a Debian 12 that debootstrap had made.
The kernel is only a header, by the specification; `file` recognizes it.
"""

import contextlib
import functools
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from diskfs.disks.opening import open_source
from diskfs.guest.files import GuestFiles, Volume
from diskfs.guest.folder_files import FolderFiles
from diskfs.preflight.facts import Facts
from diskfs.preflight.request import Request
from diskfs.preflight.rules.engine import run
from diskfs.preflight.rules.outcome import Status

RELEASE = "6.1.0-50-amd64"
ROOT_UUID = "b7a5e589-798c-4618-8c6a-a07b491d4ddf"
ESP_UUID = "A1B2-C3D4"
CONFIG = Path(__file__).with_name("debian12-grub.cfg")
GRUB_PC = Path("/usr/lib/grub/i386-pc")
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJx0bYlYdCTYqD2yjy6sVJtpOJIzjfsmcoUnl3DVuPrP admin@example"
DISK_SIZE = 64 << 20

MODULES = (
    "drivers/nvme/host/nvme.ko", "drivers/nvme/host/nvme-core.ko", "drivers/net/ethernet/amazon/ena/ena.ko",
    "drivers/block/xen-blkfront.ko", "drivers/net/xen-netfront.ko", "drivers/block/virtio_blk.ko",
)  # fmt: skip
EARLY = (MODULES[0], MODULES[1], MODULES[3], MODULES[4], MODULES[5])


def kernel_image(release: str = RELEASE, *, is_64_bit: bool = True) -> bytes:
    """Return the setup header of a bzImage of boot protocol 2.15 with its version text, as boot.rst describes it."""
    image = bytearray(16 << 10)
    struct.pack_into("<BHIHHHH", image, 0x1F1, 15, 1, 0x1000, 0, 0xFFFF, 0, 0xAA55)
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x206, 0x020F)
    text = f"{release} (debian-kernel@lists.debian.org) #1 SMP PREEMPT_DYNAMIC Debian 6.1.0\0".encode()
    struct.pack_into("<H", image, 0x20E, 0x1000)
    image[0x211] = 1  # LOADED_HIGH: a bzImage
    struct.pack_into("<H", image, 0x236, 1 if is_64_bit else 0)
    image[0x1200 : 0x1200 + len(text)] = text
    return bytes(image)


def elf_program(*, bits: int = 64, machine: int = 62) -> bytes:
    """Return the ELF header of a program."""
    return b"\x7fELF" + bytes([bits // 32, 1, 1]) + bytes(9) + struct.pack("<HHI", 3, machine, 1) + bytes(40)


def cpio(folder: Path) -> bytes:
    """Pack a folder as the kernel takes it."""
    names = "\n".join(str(path.relative_to(folder)) for path in sorted(folder.rglob("*")))
    command = ["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0"]
    return subprocess.run(command, cwd=folder, input=names.encode(), check=True, capture_output=True).stdout


def compress(program: str, data: bytes, *options: str) -> bytes:
    return subprocess.run([program, "-c", *options], input=data, check=True, capture_output=True).stdout


@functools.cache
def initramfs(modules: tuple[str, ...] = EARLY, *, compression: str = "zstd", microcode: bool = True) -> bytes:
    """Return an initramfs with these modules, behind an archive of microcode."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        early, main = folder / "early", folder / "main"
        (early / "kernel/x86/microcode").mkdir(parents=True)
        (early / "kernel/x86/microcode/GenuineIntel.bin").write_bytes(b"\x01" * 3000)
        for module in modules:
            path = main / f"usr/lib/modules/{RELEASE}/kernel/{module}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(module.encode() * 50)
        main.mkdir(exist_ok=True)
        (main / "init").write_text("#!/bin/sh\n")
        packed = cpio(main)
        options = ("-l",) if compression == "lz4" else ()
        content = packed if compression == "none" else compress(compression, packed, *options)
        return (cpio(early) if microcode else b"") + content


FSTAB = f"""# <file system> <mount point> <type> <options> <dump> <pass>
UUID={ROOT_UUID} / ext4 errors=remount-ro 0 1
"""

FILES: dict[str, str | bytes] = {
    "/etc/os-release": 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nNAME="Debian GNU/Linux"\nVERSION_ID="12"\n'
    'VERSION="12 (bookworm)"\nVERSION_CODENAME=bookworm\nID=debian\n',
    "/etc/debian_version": "12.4\n",
    "/etc/fstab": FSTAB,
    "/etc/passwd": "root:x:0:0:root:/root:/bin/bash\nsshd:x:101:65534::/run/sshd:/usr/sbin/nologin\n"
    "admin:x:1000:1000::/home/admin:/bin/bash\n",
    "/etc/login.defs": "UID_MIN 1000\n",
    "/etc/hostname": "debian\n",
    "/etc/network/interfaces": "auto lo\niface lo inet loopback\n\nauto eth0\niface eth0 inet dhcp\n",
    "/etc/ssh/sshd_config": "Include /etc/ssh/sshd_config.d/*.conf\n\nUsePAM yes\n",
    "/etc/default/grub": 'GRUB_DEFAULT=0\nGRUB_TIMEOUT=5\nGRUB_CMDLINE_LINUX="net.ifnames=0 biosdevname=0"\n',
    "/home/admin/.ssh/authorized_keys": KEY + "\n",
    "/usr/sbin/sshd": elf_program(),
    "/usr/sbin/dhclient": elf_program(),
    "/usr/bin/dash": elf_program(),
    "/usr/lib/systemd/systemd": elf_program(),
    "/usr/lib/systemd/system/ssh.service": "[Unit]\nDescription=OpenBSD Secure Shell server\n",
    "/usr/lib/udev/rules.d/80-net-setup-link.rules": 'ENV{ID_NET_NAME}!="", NAME="$env{ID_NET_NAME}"\n',
    f"/usr/lib/modules/{RELEASE}/modules.dep": "".join(f"kernel/{module}:\n" for module in MODULES),
    f"/usr/lib/modules/{RELEASE}/modules.builtin": "kernel/fs/ext4/ext4.ko\nkernel/drivers/virtio/virtio.ko\n",
    f"/var/lib/dpkg/info/linux-image-{RELEASE}.list": f"/.\n/boot\n/boot/config-{RELEASE}\n/boot/vmlinuz-{RELEASE}\n",
    f"/boot/vmlinuz-{RELEASE}": kernel_image(),
    "/boot/grub/grubenv": "# GRUB Environment Block\n".ljust(1024, "#"),
}
LINKS = {
    "/bin": "usr/bin",
    "/sbin": "usr/sbin",
    "/lib": "usr/lib",
    "/usr/sbin/init": "/lib/systemd/systemd",
    "/usr/bin/sh": "dash",
    "/etc/systemd/system/multi-user.target.wants/ssh.service": "/lib/systemd/system/ssh.service",
    "/vmlinuz": f"boot/vmlinuz-{RELEASE}",
}
STUB = f"search.fs_uuid {ROOT_UUID} root hd0,gpt2\nset prefix=($root)'/boot/grub'\nconfigfile $prefix/grub.cfg\n"


@dataclass
class LinuxGuest:
    """A guest that a test may change: files of its tree, what its file systems say of themselves, its other volumes."""

    root: Path
    disk: Path
    is_uefi: bool = False
    kind: str = "ext4"
    free: int | None = 4 << 30
    state: frozenset[str] = frozenset()
    more: list[Volume] = field(default_factory=list)
    """Volumes besides the root and the EFI system partition."""
    request: Request = field(default_factory=Request)

    @property
    def esp(self) -> Path:
        return self.root.parent / "esp"

    def write(self, path: str, content: str | bytes) -> None:
        target = self.root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)

    def link(self, path: str, target: str) -> None:
        place = self.root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        place.symlink_to(target)

    def remove(self, path: str) -> None:
        place = self.root / path.lstrip("/")
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        else:
            place.unlink()

    def replace(self, path: str, old: str, new: str) -> None:
        text = (self.root / path.lstrip("/")).read_text()
        assert old in text, f"{old!r} is not in {path}"
        self.write(path, text.replace(old, new))

    def files(self, volume: str = "disk0p1") -> GuestFiles:
        return FolderFiles(self.root, kind=self.kind, uuid=ROOT_UUID, free=self.free, volume=volume, state=self.state)

    @property
    def volumes(self) -> tuple[Volume, ...]:
        if not self.is_uefi:
            return (Volume("disk0p1", 0, 1, 1 << 20, DISK_SIZE, self.kind, self.files()), *self.more)
        esp = FolderFiles(self.esp, kind="vfat", uuid=ESP_UUID, volume="disk0p1", ignore_case=True)
        return (
            Volume("disk0p1", 0, 1, 1 << 20, 16 << 20, "vfat", esp),
            Volume("disk0p2", 0, 2, 17 << 20, DISK_SIZE, self.kind, self.files("disk0p2")),
            *self.more,
        )

    @contextlib.contextmanager
    def facts(self) -> Iterator[Facts]:
        with open_source(str(self.disk)) as source:
            facts = Facts(self.request, str(self.disk), source)
            # What diskfs.guest.volumes would find on real file systems.
            facts.__dict__["fact volumes"] = self.volumes
            yield facts

    def results(self) -> dict[str, tuple[Status, str, str]]:
        """Return {rule: (status, severity, found)}."""
        with self.facts() as facts:
            return {
                result.rule.id: (result.status, result.severity.value, result.found)
                for result in run(facts)
            }  # fmt: skip


def make_disk(path: Path, *, uefi: bool) -> None:
    """Make a disk of 64 MiB with partitions; for BIOS with GRUB as grub-install puts it there."""
    path.write_bytes(b"")
    with path.open("r+b") as file:
        file.truncate(DISK_SIZE)
    layout = (
        "label: gpt\nstart=2048, size=16M, type=uefi\ntype=linux\n"
        if uefi
        else "label: dos\nstart=2048, type=83, bootable\n"
    )
    subprocess.run(["sfdisk", "--quiet", path], input=layout.encode(), check=True)
    if not uefi:
        install_grub(path)


def install_grub(disk: Path) -> None:
    with disk.open("r+b") as file:
        file.write((GRUB_PC / "boot.img").read_bytes()[:440])
        file.seek(512)
        file.write(core_image("i386-pc", "biosdisk", "part_msdos", "ext2"))


@functools.cache
def core_image(target: str, *modules: str) -> bytes:
    """Return what grub-mkimage makes: core.img, or a program for UEFI."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "image")
        command = ["grub-mkimage", "-O", target, "-o", str(output), "-p", "/boot/grub", *modules]
        subprocess.run(command, check=True, capture_output=True)
        return output.read_bytes()


def make_guest(folder: Path, *, uefi: bool = False) -> LinuxGuest:
    """Make a guest that breaks no rule, below `folder`."""
    guest = LinuxGuest(folder / "root", folder / "disk.raw", is_uefi=uefi)
    guest.root.mkdir(parents=True)
    for path, content in FILES.items():
        guest.write(path, content)
    for path, target in LINKS.items():
        guest.link(path, target)
    guest.write(f"/boot/initrd.img-{RELEASE}", initramfs())
    guest.write("/boot/grub/grub.cfg", CONFIG.read_bytes())
    make_disk(guest.disk, uefi=uefi)
    if uefi:
        program = core_image("x86_64-efi", "part_gpt", "fat", "ext2", "configfile")
        for name in ("EFI/BOOT/BOOTX64.EFI", "EFI/debian/grubx64.efi"):
            (guest.esp / name).parent.mkdir(parents=True, exist_ok=True)
            (guest.esp / name).write_bytes(program)
        (guest.esp / "EFI/debian/grub.cfg").write_text(STUB)
        guest.write("/boot/efi/.keep", "")
        guest.write("/etc/fstab", f"{FSTAB}UUID={ESP_UUID} /boot/efi vfat umask=0077 0 1\n")
    return guest


def another_system(guest: LinuxGuest, folder: Path) -> Volume:
    """Return a second volume with an /etc of its own."""
    (folder / "etc").mkdir(parents=True)
    (folder / "etc/fstab").write_text("UUID=0 / ext4 defaults 0 1\n")
    (folder / "etc/os-release").write_text("ID=debian\n")
    files = FolderFiles(folder, uuid="00000000-0000-4000-8000-000000000000", volume="disk0p3")
    return Volume("disk0p3", 0, 3, 40 << 20, 1 << 20, "ext4", files)


def changed(before: dict[str, tuple[Status, str, str]], after: dict[str, tuple[Status, str, str]]) -> dict[str, str]:
    """Return {rule: its status now} of the rules whose status or severity is another, or that fail otherwise."""
    found = {}
    for rule, (status, severity, text) in after.items():
        old = before[rule]
        if (status, severity) != old[:2] or (status is Status.FAIL and text != old[2]):
            found[rule] = status.value
    return found
