"""VMIE-LIN: is the Linux guest prepared? Space, drivers, and whether it was shut down; fstab and network are apart."""

from collections.abc import Iterator

from diskfs.guest.files import GuestFiles
from diskfs.preflight.facts import Facts
from diskfs.preflight.linux import LinuxFacts
from diskfs.preflight.rules.linux_systems import NO_DEFAULT_KERNEL, linux_of
from diskfs.preflight.rules.outcome import Outcome, failed, passed, unknown
from diskfs.preflight.rules.registry import check

MIN_FREE_ROOT = 500 << 20
"""Bytes. The guide gives no figure; the SSM agent, drivers and a second initramfs take some 300 MiB."""
MIN_FREE_BOOT = 64 << 20
"""Bytes, where /boot is a file system of its own: one more initramfs with its drivers."""

_UNCLEAN = {
    "needs-journal-recovery": "its journal has not been replayed",
    "dirty-log": "its log has not been replayed",
    "unclean": "it was not unmounted",
    "errors": "errors were noted in it",
    "hibernated": "the system is hibernated",
}

DRIVERS = {"nvme": "NVMe disks", "ena": "the elastic network adapter"}


@check("VMIE-LIN-03")
def free_space(facts: Facts) -> Iterator[Outcome]:
    """The root file system has 500 MiB free, and /boot, where it is one of its own, 64 MiB. The guide has no figure."""
    linux = linux_of(facts)
    for path, least in (("/", MIN_FREE_ROOT), ("/boot", MIN_FREE_BOOT)):
        files = linux.tree.mounted(path)
        if files is None:
            continue
        yield _space(path, files, least)


def _space(path: str, files: GuestFiles, least: int) -> Outcome:
    if files.free is None:
        return unknown(f"{files.volume}: how much of the {files.kind} is free is not told")
    said = f"{path} ({files.volume}, {files.kind}): {files.free >> 20} MiB of {files.size >> 20} MiB are free"
    return (
        passed(said)
        if files.free >= least
        else failed(f"{said}, under {least >> 20} MiB", f"free some space on {path}")
    )


@check("VMIE-LIN-04")
def nitro_drivers(facts: Facts) -> Iterator[Outcome]:
    """modules.dep or modules.builtin of the default kernel list nvme and ena; nvme is in the initramfs or built in."""
    linux = linux_of(facts)
    kernel = linux.default_kernel
    if kernel is None:
        yield unknown(NO_DEFAULT_KERNEL)
        return
    for module, what in DRIVERS.items():
        place = linux.has_driver(module)
        if place is None:
            yield failed(f"kernel {kernel.release} has no module {module} for {what}", f"install the {module} driver")
        else:
            yield passed(f"{place}: {module}")
    yield from _early_nvme(linux)


def _early_nvme(linux: LinuxFacts) -> Iterator[Outcome]:
    modules, initramfs = linux.modules, linux.initramfs
    if modules is None or initramfs is None or "nvme" in modules.builtin:
        return
    if initramfs.problem:
        yield unknown(f"whether the initramfs has nvme is not known: {initramfs.problem}")
    elif initramfs.has("nvme"):
        yield passed(f"{initramfs.path}: nvme")
    elif linux.has_driver("nvme") is not None:
        yield failed(
            f"{initramfs.path} has no module nvme, which is needed to find the root disk",
            "add nvme to the initramfs: 'echo nvme >>/etc/initramfs-tools/modules && update-initramfs -u', or "
            "'dracut -f --add-drivers nvme'",
        )


@check("VMIE-LIN-05")
def ena_support(facts: Facts) -> Iterator[Outcome]:
    """Whether the default kernel has a module nvme or ena decides the flag EnaSupport of the image that is made."""
    linux = linux_of(facts)
    if linux.default_kernel is None:
        yield unknown(NO_DEFAULT_KERNEL)
        return
    found = {name: place for name in DRIVERS if (place := linux.has_driver(name)) is not None}
    if found:
        yield passed(f"EnaSupport will be set: {', '.join(f'{place}: {name}' for name, place in found.items())}")
    else:
        yield failed(f"EnaSupport will not be set: kernel {linux.default_kernel.release} has neither nvme nor ena")


@check("VMIE-LIN-11")
def shut_down(facts: Facts) -> Iterator[Outcome]:
    """No file system of the guest is marked as in use or has a journal to replay; no swap holds a hibernated system."""
    linux = linux_of(facts)
    for path, volume in linux.mounts.items():
        if volume.files is None:
            continue
        said = [_UNCLEAN[remark] for remark in sorted(volume.files.state & _UNCLEAN.keys())]
        if said:
            yield failed(f"{path} ({volume.name}, {volume.filesystem}): {'; '.join(said)}")
        else:
            yield passed(f"{path} ({volume.name}): clean")
    for volume in facts.volumes:
        if volume.filesystem == "swsuspend":
            yield failed(f"{volume.name}: the swap holds a hibernated system")
