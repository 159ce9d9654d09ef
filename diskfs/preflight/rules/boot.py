"""VMIE-BOOT for Linux: boot mode, loader, GRUB's configuration, initramfs. The rules for Windows are elsewhere."""

import shlex
from collections.abc import Iterator

from diskfs.preflight.boot import BootFacts
from diskfs.preflight.boot.efi import FALLBACK, EfiPartition
from diskfs.preflight.boot.grub_files import NAMES
from diskfs.preflight.facts import Facts
from diskfs.preflight.linux import LinuxFacts
from diskfs.preflight.linux.grub_menu import matches
from diskfs.preflight.rules.linux_systems import linux_of
from diskfs.preflight.rules.outcome import Outcome, failed, not_applicable, passed, unknown
from diskfs.preflight.rules.registry import check


@check("VMIE-BOOT-06")
def fallback_loader(facts: Facts) -> Iterator[Outcome]:
    """Where an EFI system partition has loaders, or UEFI is asked for, /EFI/BOOT/BOOTX64.EFI is on it and a program
    for x86-64.
    """
    boot = facts.boot
    partitions = [one for one in boot.efi_partitions if one.programs or one.problem]
    if not partitions:
        if facts.request.boot_mode == "uefi":
            yield failed("the boot mode is uefi and no EFI system partition has a loader")
        else:
            yield not_applicable("no EFI system partition has a loader: the guest is not for UEFI")
        return
    for partition in partitions:
        fallback = partition.fallback
        if partition.problem:
            yield unknown(f"{partition.volume.name}: the EFI system partition cannot be read: {partition.problem}")
        elif fallback is None:
            others = ", ".join(one.path for one in partition.programs[:6])
            yield failed(
                f"{partition.volume.name}: {FALLBACK} is not there; there are {others}",
                _copy_loader(partition),
            )
        elif fallback.machine != "x86_64":
            said = fallback.machine or "no PE program"
            yield failed(f"{partition.volume.name}: {fallback.path} is for {said}, not x86_64")
        else:
            yield passed(f"{partition.volume.name}: {fallback.path}")


def _copy_loader(partition: EfiPartition) -> str | None:
    """Return how to make the fallback of a loader: GRUB with the shim that lies beside it, or GRUB alone."""
    by_path = {one.path.lower(): one for one in partition.loaders}
    for path, shim in by_path.items():
        grub = by_path.get(f"{path.rpartition('/')[0]}/grubx64.efi")
        if path.endswith("/shimx64.efi") and grub is not None:
            copies = [f"cp {_here(shim.path)} .{FALLBACK}", f"cp {_here(grub.path)} ./EFI/BOOT/grubx64.efi"]
            return f"on the mounted partition: mkdir -p EFI/BOOT && {' && '.join(copies)}"
    for path, one in by_path.items():
        if path.rpartition("/")[2] in {"grubx64.efi", "grub.efi"}:
            return f"on the mounted partition: mkdir -p EFI/BOOT && cp {_here(one.path)} .{FALLBACK}"
    return None


def _here(path: str) -> str:
    return shlex.quote(f".{path}")


@check("VMIE-BOOT-07")
def grub_boots(facts: Facts) -> Iterator[Outcome]:
    """The boot code of the disk, or the loader on the EFI system partition, is GRUB's, and a grub.cfg, grub.conf or
    menu.lst is there; LILO, Syslinux and systemd-boot are none.
    """
    boot, grub = facts.boot, linux_of(facts).grub
    for disk in boot.disks:
        if disk.boot_code.kind in {"lilo", "syslinux"}:
            yield failed(f"disk {disk.index}: the MBR has {disk.boot_code.kind.upper()}")
        elif disk.boot_code.is_grub:
            yield passed(f"disk {disk.index}: the MBR has GRUB")
        for partition, kind in zip(disk.active, disk.active_code, strict=True):
            if kind in {"lilo", "syslinux"} and disk.boot_code.starts_active:
                yield failed(f"disk {disk.index}, partition {partition.number}: its boot sector has {kind.upper()}")
    for efi in boot.efi_partitions:
        if efi.has_systemd_boot:
            yield failed(f"{efi.volume.name}: systemd-boot is on the EFI system partition")
    if grub is None:
        yield failed("there is neither grub.cfg, grub.conf nor menu.lst in /boot")
    else:
        yield passed(f"{grub.path}")


@check("VMIE-BOOT-08")
def one_grub_configuration(facts: Facts) -> Iterator[Outcome]:
    """All files of the name grub.cfg on all file systems have the same content, and so have those named grub.conf and
    menu.lst; links and files on an EFI system partition that only lead to another configuration do not count.
    """
    files = facts.boot.grub_files
    for name in NAMES:
        real = [one for one in files if one.name.lower() == name and not one.is_stub]
        if len({one.digest for one in real}) > 1:
            yield failed(f"{len(real)} files named {name} differ: {', '.join(map(str, real[:6]))}")
        elif real:
            yield passed(", ".join(map(str, real[:6])))
    for one in files:
        if one.is_stub:
            yield passed(f"{one} only leads to another configuration")


@check("VMIE-BOOT-09")
def bls_default(facts: Facts) -> Iterator[Outcome]:
    """Where grub.cfg uses blscfg, it sets the default from saved_entry, and grubenv is a block of 1,024 bytes whose
    saved_entry names a file of /boot/loader/entries.
    """
    grub = linux_of(facts).grub
    if grub is None or grub.menu is None or not grub.menu.uses_blscfg:
        yield not_applicable("GRUB's configuration does not use blscfg")
        return
    menu, here = grub.menu, f"{grub.path}:{grub.menu.blscfg_line}"
    if not grub.bls:
        yield failed(f"{here}: blscfg is used and /boot/loader/entries has no entry")
    if not menu.default_from_saved:
        lines = menu.default_lines
        where = (
            f"{grub.path}:{lines[-1]}: default is not set from saved_entry" if lines else f"{grub.path} sets no default"
        )
        yield failed(where, f'write set default="${{saved_entry}}" in {grub.path} (GRUB_DEFAULT=saved, grub2-mkconfig)')
        return
    environment = grub.environment
    if environment is None:
        yield failed(f"{here}: there is no grubenv beside it", "grub2-set-default 0")
        return
    saved = environment.values.get("saved_entry", "")
    if environment.problem:
        yield failed(
            f"{environment.path}: {environment.problem}", f"grub2-editenv {shlex.quote(str(environment.path))} create"
        )
    elif not saved:
        yield failed(f"{environment.path}: saved_entry is not set", _set_default(grub.bls[0].id if grub.bls else "ID"))
    elif grub.bls and saved not in {entry.id for entry in grub.bls} and not matches(menu.entries, saved):
        yield failed(
            f"{environment.path}: saved_entry={saved} is no file of /boot/loader/entries", _set_default(grub.bls[0].id)
        )
    elif grub.bls:
        yield passed(f"{environment.path}: saved_entry={saved}")


def _set_default(entry: str) -> str:
    return f"grub2-set-default {shlex.quote(entry)}"


@check("VMIE-BOOT-10")
def readable_initramfs(facts: Facts) -> Iterator[Outcome]:
    """The default kernel's initramfs decompresses to its end, and is cpio archives throughout."""
    linux = linux_of(facts)
    initramfs = linux.initramfs
    if initramfs is None:
        entry = linux.grub.default if linux.grub else None
        if entry is not None and entry.initrds:
            yield failed(f"{entry.path}:{entry.line}: {entry.initrds[-1]} is not there", _rebuild(linux))
        elif linux.default_kernel is None:
            yield unknown("the kernel that is booted by default could not be found, nor its initramfs")
        else:
            yield failed(f"there is no initramfs for {linux.default_kernel.path}", _rebuild(linux))
    elif initramfs.is_unsupported:
        yield unknown(initramfs.problem)
    elif initramfs.problem:
        yield failed(initramfs.problem, _rebuild(linux))
    else:
        missing = [name for name in ("xen-blkfront", "xen-netfront", "nvme", "ena") if not _has(linux, name)]
        note = f"; without {', '.join(missing)}" if missing else ""
        parts = "+".join(initramfs.compressions)
        yield passed(f"{initramfs.path}: {initramfs.members} files, {len(initramfs.modules)} modules, {parts}{note}")


def _has(linux: LinuxFacts, name: str) -> bool:
    initramfs, modules = linux.initramfs, linux.modules
    return (initramfs is not None and initramfs.has(name)) or (
        modules is not None and name.replace("-", "_") in modules.builtin
    )


def _rebuild(linux: LinuxFacts) -> str:
    release = shlex.quote(linux.default_kernel.release) if linux.default_kernel else "RELEASE"
    return f"rebuild it in the VM: update-initramfs -u -k {release}, or dracut -f --kver {release}"


@check("VMIE-BOOT-11", any_guest=True)
def boot_partition(facts: Facts) -> Iterator[Outcome]:
    """A disk can be started: by a BIOS (GRUB in the MBR with its second part, or boot code and an active partition that
    has some), or by UEFI (a loader for x86-64 on an EFI system partition); where a boot mode is asked for, in that one.
    """
    boot = facts.boot
    asked = facts.request.boot_mode
    if asked in {"uefi", "legacy-bios"}:
        reason = boot.uefi_reason if asked == "uefi" else boot.bios_reason
        yield passed(reason) if reason else failed(f"nothing on the disks starts in the mode {asked}: {_why_not(boot)}")
        return
    for reason in (boot.bios_reason, boot.uefi_reason):
        if reason:
            yield passed(reason)
    if not boot.fits:
        yield failed(_why_not(boot))


def _why_not(boot: BootFacts) -> str:
    said = []
    for disk in boot.disks:
        code = disk.boot_code
        if code.is_grub:
            said.append(f"disk {disk.index}: GRUB in the MBR goes on at sector {code.next_sector}, which is empty")
        elif not code.kind:
            said.append(f"disk {disk.index}: the MBR has no boot code")
        elif not disk.active:
            said.append(f"disk {disk.index}: the MBR has boot code ({code.kind}) and no partition is active")
        else:
            numbers = ", ".join(str(one.number) for one in disk.active)
            said.append(f"disk {disk.index}: the active partition {numbers} has no boot code")
    efi = [one.volume.name for one in boot.efi_partitions]
    said.append(f"no loader for x86-64 on {', '.join(efi)}" if efi else "no EFI system partition")
    return "; ".join(said)
