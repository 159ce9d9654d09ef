"""What a Linux guest is like, each fact gathered when it is first asked for.

Facts that cannot be gathered raise the DiskfsError that says why. Not for several threads.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from diskfs.guest.errors import GuestError
from diskfs.guest.files import GuestFiles, Volume
from diskfs.preflight.linux.devices import Devices
from diskfs.preflight.linux.elf import ElfHeader, parse_elf
from diskfs.preflight.linux.firewall import FirewallVerdict, read_firewalls
from diskfs.preflight.linux.fstab import Fstab, parse_fstab
from diskfs.preflight.linux.initramfs import Initramfs, read_initramfs
from diskfs.preflight.linux.kernels import (
    GrubSetup,
    Kernel,
    Modules,
    find_kernels,
    grub_path,
    read_grub,
    read_kernel,
    read_modules,
)  # fmt: skip
from diskfs.preflight.linux.network import InterfaceSetting, read_interfaces
from diskfs.preflight.linux.release import Release, find_release
from diskfs.preflight.linux.roots import Root, mount_tree
from diskfs.preflight.linux.services import Services
from diskfs.preflight.linux.software import (
    DhcpClient,
    Found,
    dhcp_clients,
    packages_of_kernel,
    security_software,
    vmware_tools,
)  # fmt: skip
from diskfs.preflight.linux.ssh import Ssh
from diskfs.preflight.linux.text import Place, shell_assignments
from diskfs.preflight.linux.tree import GuestTree

PROGRAMS = ("/sbin/init", "/bin/sh", "/bin/bash", "/usr/lib/systemd/systemd", "/bin/busybox", "/bin/ls")
"""Of these the first that is an ELF file tells for which processor the system is."""

INITRAMFS_NAMES = ("initrd.img-{}", "initramfs-{}.img", "initrd-{}.img", "initrd-{}", "initramfs-{}")
NITRO_MODULES = ("nvme", "ena")
XEN_MODULES = ("xen_blkfront", "xen_netfront")


@dataclass(frozen=True, slots=True)
class Program:
    path: str
    header: ElfHeader


class LinuxFacts:
    """The facts about the Linux system whose root is the first of `roots`."""

    def __init__(self, roots: Sequence[Root], devices: Devices, *, platform: str = "pc") -> None:
        self.roots = tuple(roots)
        self.root = self.roots[0]
        self.devices = devices
        self._platform = platform

    @property
    def root_volume(self) -> Volume:
        return self.root.volume

    @property
    def root_files(self) -> GuestFiles:
        return self.root.files

    @functools.cached_property
    def _mounted(self) -> tuple[GuestTree, dict[str, Volume]]:
        return mount_tree(self.root, self.devices)

    @property
    def tree(self) -> GuestTree:
        """The guest's folders with what its fstab mounts."""
        return self._mounted[0]

    @property
    def mounts(self) -> dict[str, Volume]:
        """{mount point: volume}."""
        return self._mounted[1]

    @functools.cached_property
    def fstab(self) -> Fstab | None:
        """The parsed /etc/fstab, None if there is none."""
        text = self.tree.text("/etc/fstab")
        return None if text is None else parse_fstab(text)

    @functools.cached_property
    def release(self) -> Release | None:
        return find_release(self.tree)

    @functools.cached_property
    def program(self) -> Program | None:
        """The program by which the architecture is known."""
        for path in PROGRAMS:
            if self.tree.is_file(path):
                header = parse_elf(self.tree.read(path, 64))
                if header is not None:
                    return Program(self.tree.resolve(path) or path, header)
        return None

    @functools.cached_property
    def kernels(self) -> list[Kernel]:
        """The kernels in /boot."""
        return find_kernels(self.tree)

    @functools.cached_property
    def grub(self) -> GrubSetup | None:
        return read_grub(self.tree, platform=self._platform)

    @functools.cached_property
    def default_kernel(self) -> Kernel | None:
        """The kernel that GRUB boots by default; where there is one kernel alone, that one."""
        entry = self.grub.default if self.grub else None
        if entry is not None and entry.kernel:
            path = grub_path(self.tree, entry.kernel)
            return None if path is None else read_kernel(self.tree, path)
        if entry is None and len(self.kernels) == 1:
            return self.kernels[0]
        return None

    @functools.cached_property
    def command_line(self) -> tuple[str, Place] | None:
        """The default entry's kernel options, and where they stand."""
        entry = self.grub.default if self.grub else None
        return None if entry is None else (entry.options, Place(entry.path, entry.kernel_line or entry.line))

    @functools.cached_property
    def default_settings(self) -> dict[str, tuple[str, int]]:
        """/etc/default/grub, from which grub.cfg is made."""
        return shell_assignments(self.tree.text("/etc/default/grub") or "")

    @functools.cached_property
    def initramfs_path(self) -> str | None:
        """The default entry's initramfs, else the one that belongs to the default kernel."""
        entry = self.grub.default if self.grub else None
        # The last one is the distribution's; those before are microcode.
        for name in reversed(entry.initrds if entry else ()):
            path = grub_path(self.tree, name)
            if path is not None:
                return path
        kernel = self.default_kernel
        if kernel is not None and not (entry and entry.initrds):
            names = [f"/boot/{name.format(kernel.release)}" for name in INITRAMFS_NAMES]
            return next((path for path in names if self.tree.is_file(path)), None)
        return None

    @functools.cached_property
    def initramfs(self) -> Initramfs | None:
        """The content of the default kernel's initramfs, None if there is none."""
        path = self.initramfs_path
        return None if path is None else read_initramfs(self.tree.open(path), path)

    @functools.cached_property
    def modules(self) -> Modules | None:
        """The modules of the default kernel."""
        kernel = self.default_kernel
        return None if kernel is None else read_modules(self.tree, kernel.release)

    @functools.cached_property
    def interfaces(self) -> list[InterfaceSetting]:
        return read_interfaces(self.tree)

    @functools.cached_property
    def services(self) -> Services:
        return Services(self.tree)

    @functools.cached_property
    def ssh(self) -> Ssh:
        return Ssh(self.tree, self.services)

    @functools.cached_property
    def firewalls(self) -> list[FirewallVerdict]:
        return list(read_firewalls(self.tree, self.services, self.ssh.ports))

    @functools.cached_property
    def vmware_tools(self) -> list[Found]:
        return vmware_tools(self.tree)

    @functools.cached_property
    def security_software(self) -> list[Found]:
        return security_software(self.services)

    @functools.cached_property
    def dhcp_clients(self) -> list[DhcpClient]:
        return dhcp_clients(self.tree, self.services)

    @functools.cached_property
    def kernel_package(self) -> Place | None:
        """Where dpkg says that the default kernel is a package's."""
        kernel = self.default_kernel
        return None if kernel is None else packages_of_kernel(self.tree, kernel.release)

    def has_driver(self, module: str) -> Place | None:
        """Return where a driver of the default kernel is listed, None if it has none; GuestError if not known."""
        if self.default_kernel is None:
            raise GuestError("the kernel that is booted by default is not known")
        return self.modules.place_of(module) if self.modules else None
