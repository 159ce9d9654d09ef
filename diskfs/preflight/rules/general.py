"""VMIE-GEN: what is asked of every guest, whichever system it is."""

import shlex
from collections.abc import Iterator

from diskfs.guest.files import find
from diskfs.preflight.facts import Facts
from diskfs.preflight.request import Operation
from diskfs.preflight.rules.outcome import Outcome, failed, not_applicable, not_checked, passed, unknown
from diskfs.preflight.rules.partitions import root_disk
from diskfs.preflight.rules.registry import check
from diskfs.preflight.rules.request import PLATFORMS
from diskfs.preflight.windows.readings import SOFTWARE
from diskfs.preflight.windows.services import CONVERTER_SERVICES, NITRO_DRIVERS, VMWARE_SERVICES, VMWARE_TOOLS
from diskfs_formats.findings import Severity

ENCRYPTED = {"crypto_LUKS": "LUKS", "BitLocker": "BitLocker"}
"""File systems by the names of diskfs.guest.filesystems, and what they are called."""
WINDOWS_MARK = "/Windows/System32/config/SYSTEM"
CONVERSION_TRACES = (
    "/etc/vmware-converter", "/var/log/vmware-converter-agent", "/usr/lib/vmware-converter", "/etc/platespin",
)  # fmt: skip
"""What programs that convert physical machines leave behind."""
PHYSICAL_DRIVERS = frozenset({"megaraid_sas", "mpt3sas", "hpsa", "aacraid", "smartpqi", "3w-9xxx", "arcmsr"})
"""Storage controllers that no hypervisor emulates."""
VIRTUAL_DRIVERS = frozenset(
    {
        "virtio_blk", "virtio_scsi", "virtio_pci", "vmw_pvscsi", "mptspi", "mptsas", "hv_storvsc", "xen_blkfront",
        "ata_piix", "ahci", "nvme", "sym53c8xx", "BusLogic",
    }
)  # fmt: skip
ARM = frozenset({"aarch64", "arm", "arm64"})


@check("VMIE-GEN-01")
def was_not_converted(facts: Facts) -> Iterator[Outcome]:
    """Hints only: no trace of a program that converts physical machines, and the initramfs of Linux has a driver of a
    virtual disk controller.
    """
    linux = facts.linux
    if linux is not None:
        for path in CONVERSION_TRACES:
            if linux.tree.exists(path):
                yield failed(path, severity=Severity.WARNING)
        initramfs = linux.initramfs
        if initramfs is not None:
            names = initramfs.modules | initramfs.builtin
            physical = sorted(PHYSICAL_DRIVERS & names)
            if physical and not names & VIRTUAL_DRIVERS:
                yield failed(
                    f"{initramfs.path} has {', '.join(physical)} and no driver of a virtual disk controller",
                    severity=Severity.WARNING,
                )
    if facts.windows is not None:
        for name in CONVERTER_SERVICES:
            service = facts.windows.services.get(name)
            if service is not None:
                yield failed(str(service), severity=Severity.WARNING)
    if not facts.guests:
        yield not_applicable("no system was found")


@check("VMIE-GEN-02")
def one_system(facts: Facts) -> Iterator[Outcome]:
    """One file system only is the root of a system, Linux and Windows together, and neither GRUB's menu nor that of
    Windows' boot manager starts another.
    """
    roots = [root.place for root in facts.linux.roots] if facts.linux is not None else []
    windows = [f"{files.volume}:{WINDOWS_MARK}" for files in find(WINDOWS_MARK, facts.volumes)]
    if len(roots) + len(windows) > 1:
        yield failed(", ".join([*roots, *windows][:8]))
    elif roots or windows:
        yield passed(", ".join([*roots, *windows]))
    else:
        yield not_applicable("no system was found")
    grub = facts.linux.grub if facts.linux is not None else None
    for entry in grub.entries if grub is not None else ():
        if entry.title.startswith("Windows") or entry.chainloads:
            yield failed(f"{entry.path}:{entry.line}: the menu entry {entry.title!r} starts another system")
    for store in facts.windows.boot.stores if facts.windows is not None else ():
        if len(store.systems) > 1:
            yield failed(f"{store.where}: the menu starts {len(store.systems)} systems: {', '.join(store.systems[:8])}")


@check("VMIE-GEN-03")
def nothing_is_encrypted(facts: Facts) -> Iterator[Outcome]:
    """No partition or logical volume has the signature of LUKS or BitLocker, no VMDK descriptor has keys of an
    encryption, and /etc/crypttab lists no volume.
    """
    for volume in facts.volumes:
        if volume.filesystem in ENCRYPTED:
            yield failed(
                f"{volume.name}, at offset {volume.offset:#x} of disk{volume.disk_index}, is encrypted with "
                f"{ENCRYPTED[volume.filesystem]}"
            )
    yield from _encrypted_descriptors(facts)
    crypttab = facts.linux.tree.text("/etc/crypttab") if facts.linux is not None else None
    for number, line in enumerate((crypttab or "").splitlines(), 1):
        words = line.split()
        if words and not words[0].startswith("#") and not _is_swap_with_random_key(words):
            yield failed(f"/etc/crypttab:{number}: {words[0]}")


def _encrypted_descriptors(facts: Facts) -> Iterator[Outcome]:
    for file in facts.files:
        vmdk = file.vmdk if file.stored is not None else None
        descriptor = vmdk.descriptor if vmdk is not None else None
        if descriptor is not None:
            keys = [key for key in descriptor.values if key.startswith(("encryption", "ddb.encryption"))]
            if keys:
                yield failed(f"{file}: the descriptor has {keys[0]}")


def _is_swap_with_random_key(words: list[str]) -> bool:
    return len(words) > 3 and "swap" in words[3].split(",") and words[2].startswith("/dev/")


@check("VMIE-GEN-04")
def platform_of_a_uefi_snapshot(facts: Facts) -> Iterator[Outcome]:
    """--platform, if it is given, is Linux or Windows; with --from-snapshot it is given if an EFI system partition
    has a loader.
    """
    given = facts.request.platform
    if given is not None:
        if given not in PLATFORMS:
            yield failed(f"--platform {given}", f"give {' or '.join(PLATFORMS)}")
        elif facts.guests and given.lower() not in facts.guests:
            yield failed(f"--platform {given}, and the system is {', '.join(sorted(facts.guests)).capitalize()}")
        else:
            yield passed(f"--platform {given}")
    elif not facts.request.from_snapshot:
        yield not_applicable("the disk is not given as an EBS snapshot")
    elif facts.boot.uefi_reason:
        yield failed(f"--from-snapshot without --platform; UEFI can start {facts.boot.uefi_reason}")


@check("VMIE-GEN-05")
def root_is_on_the_boot_disk(facts: Facts) -> Iterator[Outcome]:
    """The disk that firmware starts is the one with the root file system or the system drive."""
    root, boot = root_disk(facts), facts.boot.boot_disk
    if root is None or boot is None:
        yield unknown("the system was not found" if root is None else "no disk can be started: see VMIE-BOOT-11")
    elif root != boot:
        yield failed(f"disk{boot} is started, the system is on disk{root}", "put both on one disk")
    else:
        yield passed(f"disk{root}")


@check("VMIE-GEN-09")
def security_software_is_off(facts: Facts) -> Iterator[Outcome]:
    """No service of known anti-virus or intrusion detection software is started at boot."""
    if facts.linux is not None:
        for found in facts.linux.security_software:
            yield failed(f"{found.name}: {found.place}")
    elif facts.windows is not None:
        for service in facts.windows.services.security_software:
            yield failed(f"{service.product}: {service}")
    elif not facts.guests:
        yield not_applicable("no system was found")


@check("VMIE-GEN-10")
def vmware_tools_are_gone(facts: Facts) -> Iterator[Outcome]:
    """Windows has no service or key of VMware Tools; Linux has neither VMware's own tools nor open-vm-tools, which is a
    note only: the guide does not name it.
    """
    if facts.linux is not None:
        for found in facts.linux.vmware_tools:
            is_open = found.name == "open-vm-tools"
            yield failed(f"{found.name}: {found.place}", severity=Severity.INFO if is_open else None)
    elif facts.windows is not None:
        for name in VMWARE_SERVICES:
            service = facts.windows.services.get(name)
            if service is not None:
                yield failed(str(service))
        if facts.windows.registry.has(SOFTWARE, VMWARE_TOOLS):
            yield failed(f"{SOFTWARE}\\{VMWARE_TOOLS} is there")
    elif not facts.guests:
        yield not_applicable("no system was found")


@check("VMIE-GEN-12")
def dhcp_client_can_start(facts: Facts) -> Iterator[Outcome]:
    """Linux has a DHCP client whose service is not masked; of Windows, Dhcp, Tcpip and Afd are not disabled."""
    if facts.linux is not None:
        clients = facts.linux.dhcp_clients
        usable = [client for client in clients if not client.is_masked]
        if usable:
            yield passed(", ".join(client.path for client in usable))
        elif clients:
            yield failed("; ".join(f"{client.path} is masked by {client.evidence}" for client in clients))
        else:
            yield failed("none of the known DHCP clients is there", "install one, such as dhclient or systemd-networkd")
    elif facts.windows is not None:
        for name in ("Dhcp", "Tcpip", "Afd"):
            service = facts.windows.services.get(name)
            if service is None:
                yield failed(f"{facts.windows.services.where(name)}: there is no such service")
            else:
                yield failed(str(service)) if service.is_disabled else passed(str(service))
    elif not facts.guests:
        yield not_applicable("no system was found")


@check("VMIE-GEN-13")
def static_addresses(facts: Facts) -> Iterator[Outcome]:
    """No interface of the system has a static address; those that have lose it."""
    if facts.linux is not None:
        for setting in facts.linux.interfaces:
            for address, place in setting.addresses:
                yield failed(f"{place}: {setting.name} has the address {address}", "the import makes it DHCP")
    elif facts.windows is not None:
        for interface in facts.windows.network.interfaces:
            if interface.is_static:
                yield failed(str(interface.address), "the import makes it DHCP")
    elif not facts.guests:
        yield not_applicable("no system was found")


@check("VMIE-GEN-14")
def nitro_drivers(facts: Facts) -> Iterator[Outcome]:
    """The default kernel of Linux has the modules ena and nvme; Windows has services of such drivers."""
    if facts.linux is not None:
        for module in ("ena", "nvme"):
            place = facts.linux.has_driver(module)
            if place is None:
                yield failed(f"the default kernel has no driver {module}")
            else:
                yield passed(f"{module}: {place}")
    elif facts.windows is not None:
        for module, names in NITRO_DRIVERS.items():
            services = [service for name in names if (service := facts.windows.services.get(name)) is not None]
            if services:
                yield passed(str(services[0]))
            else:
                yield failed(f"{facts.windows.services.where(names[0])}: there is no driver for {module}")
    elif not facts.guests:
        yield not_applicable("no system was found")


@check("VMIE-OS-01")
def processor(facts: Facts) -> Iterator[Outcome]:
    """The machine of a program of Linux (ELF e_machine), or of ntoskrnl.exe (PE Machine), is not
    one of ARM.
    """
    if facts.linux is not None:
        program = facts.linux.program
        if program is None:
            yield unknown("no program was found that tells for which processor the system is")
        elif program.header.machine in ARM:
            yield failed(f"{program.path}: an ELF program for {program.header.machine}")
        else:
            yield passed(f"{program.path}: an ELF program for {program.header.machine}")
    if facts.windows is not None:
        machine, where = facts.windows.version.machine
        if not machine:
            yield unknown(f"{where}: for which processor it is is not known")
        else:
            yield failed(where) if machine in ARM else passed(where)
    if not facts.guests:
        yield not_applicable("no system was found")


@check("VMIE-SNAP-04")
def prepared_for_a_snapshot(facts: Facts) -> Iterator[Outcome]:
    """Runs every check of import-image over the image in the place of the checks that the service does not make."""
    from diskfs.preflight.rules.engine import run  # noqa: PLC0415 - the engine runs this check

    results = run(facts.for_operation(Operation.IMPORT_IMAGE))
    broken = [result.rule.id for result in results if result.refuses and result.rule.guest != "any"]
    if broken:
        yield failed(
            f"import-image would refuse it: {', '.join(broken)}",
            f"see diskfs preflight {shlex.quote(facts.location)} --for import-image",
        )
    elif facts.guests:
        yield passed("no rule of import-image about the guest fails")
    else:
        yield not_checked("no system was found, so nothing says that it can start")
