"""The kernels of a guest: the images in /boot, their modules, and the one that GRUB boots by default."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from diskfs.preflight.linux.grub_config import run_config
from diskfs.preflight.linux.grub_legacy import LegacyMenu, parse_legacy, select_legacy
from diskfs.preflight.linux.grub_menu import GrubMenu, MenuEntry, is_stub, select_default
from diskfs.preflight.linux.grubenv import (
    MAX_GRUBENV,
    BlsEntry,
    GrubEnvironment,
    bls_menu,
    parse_bls,
    parse_grubenv,
    sorted_bls,
)
from diskfs.preflight.linux.initramfs import module_key
from diskfs.preflight.linux.kernel_image import KernelImage, read_kernel_image
from diskfs.preflight.linux.text import SMALL_TEXT, Place, content_lines, decode
from diskfs.preflight.linux.tree import GuestTree

KERNEL_NAME = re.compile(r"(?:vmlinuz|vmlinux|bzImage|kernel)-(.+)$")
MAX_KERNELS = 100
MAX_BLS = 500
MAX_SCRIPT = 512 << 10
"""Bytes of a grub.cfg."""
MAX_MODULES_DEP = 8 << 20
"""Bytes; Debian's has 700 KiB."""
MODULE_FOLDERS = ("/lib/modules", "/usr/lib/modules")

GRUB2_CONFIGS = ("/boot/grub2/grub.cfg", "/boot/grub/grub.cfg")
LEGACY_CONFIGS = ("/boot/grub/menu.lst", "/boot/grub/grub.conf")
EFI_FOLDERS = ("/boot/efi/EFI", "/efi/EFI", "/boot/EFI")


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel image; `release` by its own header, else by its name."""

    path: str
    release: str
    image: KernelImage | None

    @property
    def machine(self) -> str:
        return self.image.machine if self.image else ""


@dataclass(slots=True)
class GrubSetup:
    """The configuration that GRUB takes, what it does, and what it boots by default."""

    path: str
    is_legacy: bool
    menu: GrubMenu | None = None
    legacy: LegacyMenu | None = None
    environment: GrubEnvironment | None = None
    bls: list[BlsEntry] = field(default_factory=list)
    default: MenuEntry | None = None

    @property
    def entries(self) -> Sequence[MenuEntry]:
        if self.legacy is not None:
            return self.legacy.entries
        return self.menu.entries if self.menu else ()


def find_kernels(tree: GuestTree) -> list[Kernel]:
    """Return the kernels in /boot, those that cannot be read with their name alone."""
    found: list[Kernel] = []
    for path in tree.names("/boot")[:2_000]:
        name = path.rpartition("/")[2]
        if KERNEL_NAME.match(name) and tree.is_file(path) and len(found) < MAX_KERNELS:
            found.append(read_kernel(tree, path))
    return found


def read_kernel(tree: GuestTree, path: str) -> Kernel:
    image = read_kernel_image(tree.open(path))
    real = tree.resolve(path) or path
    match = KERNEL_NAME.match(real.rpartition("/")[2])
    release = image.release if image and image.release else match[1] if match else ""
    return Kernel(path, release, image)


def grub_path(tree: GuestTree, path: str) -> str | None:
    """Return where in the tree a path of GRUB's is: it begins at the root of its own file system, / or /boot."""
    path = re.sub(r"/{2,}", "/", path)
    if len(path) > 2_000:
        return None
    bases = [path, f"/boot{path}", f"/boot/efi{path}"]
    if path.startswith(("/@/", "/root/", "/@rootfs/")):
        bases.append("/" + path.split("/", 2)[2])
    return next((base for base in bases if base.startswith("/") and tree.is_file(base)), None)


def read_grub(tree: GuestTree, *, platform: str = "pc") -> GrubSetup | None:
    """Find and run the configuration of GRUB 2, or read that of GRUB Legacy; None if there is neither."""
    candidates = [path for path in GRUB2_CONFIGS if tree.is_file(path)]
    efi = efi_configs(tree)
    # Red Hat kept the whole configuration on the EFI system partition; Debian has one there that leads to /boot.
    whole = [path for path in efi if platform == "efi" and not is_stub(tree.read(path, MAX_SCRIPT))]
    for path in whole or candidates or efi:
        return _run(tree, path, platform)
    for path in LEGACY_CONFIGS:
        text = tree.text(path)
        if text is not None:
            menu = parse_legacy(text, path)
            saved = tree.text("/boot/grub/default")
            return GrubSetup(path, True, legacy=menu, default=select_legacy(menu, saved))
    return None


def efi_configs(tree: GuestTree) -> list[str]:
    """Return the grub.cfg files in the vendors' folders of the EFI system partition."""
    found = []
    for base in EFI_FOLDERS:
        for entry in tree.entries(base)[:100]:
            path = f"{base}/{entry.name}/grub.cfg"
            if tree.is_file(path):
                found.append(path)
    return found


def _run(tree: GuestTree, path: str, platform: str) -> GrubSetup:
    setup = GrubSetup(path, False)
    setup.environment = find_environment(tree, path)
    setup.bls = read_bls(tree)
    values = setup.environment.values if setup.environment else {}

    def read(wanted: str) -> str | None:
        found = grub_path(tree, wanted)
        return None if found is None else decode(tree.read(found, MAX_SCRIPT))

    def exists(wanted: str) -> bool:
        return grub_path(tree, wanted) is not None

    def menu_of_bls(variables: Mapping[str, str]) -> list[MenuEntry]:
        return bls_menu(setup.bls, {**values, **variables})

    text = tree.text(path, MAX_SCRIPT) or ""
    setup.menu = run_config(
        text, path, read=read, exists=exists, environment=values, bls_entries=menu_of_bls, platform=platform
    )
    setup.default = select_default(setup.menu)
    return setup


def find_environment(tree: GuestTree, config: str) -> GrubEnvironment | None:
    """Return the environment block beside the configuration, or where Red Hat and Debian keep it."""
    folder = config.rpartition("/")[0]
    for path in dict.fromkeys((f"{folder}/grubenv", "/boot/grub2/grubenv", "/boot/grub/grubenv")):
        if tree.is_file(path):
            return parse_grubenv(tree.read(path, MAX_GRUBENV), path)
    return None


def read_bls(tree: GuestTree) -> list[BlsEntry]:
    """Return the entries of the Boot Loader Specification, the newest first."""
    paths = tree.names("/boot/loader/entries", ".conf")[:MAX_BLS]
    return sorted_bls([parse_bls(tree.text(path, SMALL_TEXT) or "", path) for path in paths if tree.is_file(path)])


def module_folder(tree: GuestTree, release: str) -> str | None:
    """Return the folder of a kernel's modules."""
    if not release or "/" in release or len(release) > 200:
        return None
    return next((f"{base}/{release}" for base in MODULE_FOLDERS if tree.is_folder(f"{base}/{release}")), None)


@dataclass(frozen=True, slots=True)
class Modules:
    """The modules of one kernel, by the names it has for them."""

    folder: str
    loadable: frozenset[str]
    builtin: frozenset[str]

    def place_of(self, module: str) -> Place | None:
        """Return the list in which a module stands."""
        key = module_key(module)
        if key in self.builtin:
            return Place(f"{self.folder}/modules.builtin")
        return Place(f"{self.folder}/modules.dep") if key in self.loadable else None


def read_modules(tree: GuestTree, release: str) -> Modules | None:
    """Read modules.dep and modules.builtin of a kernel; None if it has no modules at all."""
    folder = module_folder(tree, release)
    if folder is None:
        return None
    text = tree.text(f"{folder}/modules.dep", MAX_MODULES_DEP) or ""
    loadable = {module_key(line.partition(":")[0]) for _, line in content_lines(text)}
    builtin = {module_key(line) for _, line in content_lines(tree.text(f"{folder}/modules.builtin") or "")}
    if not loadable:
        loadable = {module_key(path) for path in tree.walk(f"{folder}/kernel") if ".ko" in path}
    return Modules(folder, frozenset(loadable), frozenset(builtin))
