"""What the import will change in a Linux guest, as far as the guide says it (section "Programmatic modifications").

The guide leaves open which lines of fstab are invalid, the names of the backup files and the values that GRUB gets:
what is predicted for the first is a choice (docs/decisions/0020-rules-as-data-and-the-report.md), and of the others
only that they happen.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diskfs_formats.text import printable

if TYPE_CHECKING:
    from diskfs.preflight.linux import LinuxFacts
    from diskfs.preflight.linux.fstab import FstabEntry
    from diskfs.preflight.windows import WindowsFacts

MAX_CHANGES = 200
FSTAB = "/etc/fstab"


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that the service will change in the guest; `where` is a file and line, or what it is about."""

    where: str
    what: str


def linux_changes(linux: "LinuxFacts") -> Iterator[Change]:
    """Yield the changes in the order of the guide; raises DiskfsError where the files cannot be read."""
    yield Change("system", "the AWS Systems Manager agent is installed")
    yield Change("drivers", "Citrix PV drivers are installed, or the initramfs is changed to contain them")
    for setting in linux.interfaces:
        for address, place in setting.addresses:
            yield Change(str(place), f"{setting.name or 'the interface'} loses its address {address} and gets DHCP")
    yield from _fstab_changes(linux)
    if linux.grub is not None:
        yield Change(linux.grub.path, "settings such as the default entry and the timeout are changed")


def _fstab_changes(linux: "LinuxFacts") -> Iterator[Change]:
    fstab = linux.fstab
    if fstab is None:
        return
    changes = [
        (line.line, f"the line is commented out, for {line.reason}: {printable(line.text.strip(), 120)}")
        for line in fstab.invalid
    ]
    seen: dict[str, int] = {}
    for entry in fstab.entries:
        is_mounted = entry.file.startswith("/") and not entry.is_swap
        first = seen.setdefault(entry.file.rstrip("/"), entry.line) if is_mounted else entry.line
        if first != entry.line:
            changes.append((entry.line, f"the line is commented out: line {first} is for {entry.file} as well"))
        elif change := _of_entry(linux, entry):
            changes.append((entry.line, change))
    for line, change in sorted(changes)[:MAX_CHANGES]:
        yield Change(f"{FSTAB}:{line}", change)


def _of_entry(linux: "LinuxFacts", entry: "FstabEntry") -> str:
    if entry.is_non_standard:
        return f"{entry.file} is disabled, for its type, {entry.vfstype}"
    if entry.is_optical:
        return f"{entry.file} is commented out: {entry.spec} is gone after the import"
    if entry.is_pseudo or entry.is_network or (entry.tag is not None and entry.tag[0] == "UUID"):
        return _nofail(linux, entry) if entry.tag is not None else ""
    match = linux.devices.resolve(entry.spec)
    if match is None:
        return _nofail(linux, entry)
    uuid = linux.devices.uuid(match.volume)
    if ":" in match.volume.name or not entry.spec.startswith("/dev/"):
        return ""
    order = ", going by the order of the disks" if match.by_order else ""
    return f"{entry.spec} becomes UUID={uuid}{order}" if uuid else _nofail(linux, entry)


def _nofail(linux: "LinuxFacts", entry: "FstabEntry") -> str:
    if linux.devices.resolve(entry.spec) is not None or "nofail" in entry.option_list:
        return ""
    return f"{entry.file} gets the option nofail: no volume is {entry.spec}; correct it after the import"


def windows_changes(windows: "WindowsFacts") -> Iterator[Change]:
    """Yield the changes in the order of the guide; raises DiskfsError where the registry cannot be read."""
    yield Change("system", "the AWS Systems Manager agent is installed")
    for interface in windows.network.interfaces:
        if interface.is_static:
            yield Change(str(interface.address), "static addresses are removed; one interface with DHCP is left")
    yield Change("registry", "settings are changed so that the system can boot")
    yield Change("drivers", "Amazon EC2's network and disk drivers are installed at the first boot")
    if windows.version.listed is not None and windows.version.listed.id == "ws2012r2":
        yield Change("drivers", "SR-IOV drivers are installed")
    if not windows.servicing.has_net_4_5:
        yield Change("system", ".NET Framework is installed if it is needed")
    if windows.servicing.is_generalized and windows.servicing.answer_file is None:
        yield Change(r"C:\Windows\Panther\unattend.xml", "is added: it accepts the EULA and sets the locale to EN-US")
