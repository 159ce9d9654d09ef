"""VMIE-GEN: what the appliance's descriptor says of the machine around the disks."""

from collections.abc import Iterator

from diskfs.preflight.facts import Facts
from diskfs.preflight.rules.outcome import Outcome, failed, not_checked, passed, unknown
from diskfs.preflight.rules.registry import check
from diskfs_formats.findings import Severity
from diskfs_formats.ovf import HardwareItem

ETHERNET = 10
CD_DRIVES = frozenset({15, 16})
"""ResourceType of a CD and a DVD drive (CIM_ResourceAllocationSettingData)."""


def items_of(facts: Facts, types: frozenset[int]) -> list[HardwareItem]:
    """Return the hardware items of some types that the default configuration has."""
    appliance = facts.source.appliance
    if appliance is None:
        return []
    default = appliance.descriptor.default_configuration
    return [
        item
        for system in appliance.descriptor.systems
        for item in system.items
        if item.resource_type in types and (not item.configurations or default in item.configurations)
    ]


@check("VMIE-GEN-07")
def one_network_interface(facts: Facts) -> Iterator[Outcome]:
    """The OVF descriptor has at most one Item of ResourceType 10, and the system's network configuration names at
    most one interface. Of Windows, more than one interface with a static address is a warning: the registry
    keeps those of adapters that are gone.
    """
    descriptor = facts.source.appliance
    if descriptor is not None:
        items = items_of(facts, frozenset({ETHERNET}))
        ids = ", ".join(item.instance_id for item in items[:8])
        found = f"{descriptor.descriptor_name}: {len(items)} network interfaces"
        yield failed(f"{found} (InstanceID {ids})", "remove all but one") if len(items) > 1 else passed(found)
    if facts.linux is not None:
        names: dict[str, str] = {}
        for setting in facts.linux.interfaces:
            if not setting.is_disabled and setting.is_physical and setting.name and "*" not in setting.name:
                names.setdefault(setting.name, str(setting.place))
        if len(names) > 1:
            yield failed("; ".join(f"{place}: {name}" for name, place in sorted(names.items())[:8]))
        else:
            yield passed("; ".join(f"{place}: {name}" for name, place in names.items()))
    elif facts.windows is not None:
        static = [one for one in facts.windows.network.interfaces if one.is_static]
        if len(static) > 1:
            yield failed("; ".join(str(one.address) for one in static[:8]), severity=Severity.WARNING)
    elif descriptor is None:
        yield unknown("the image says nothing about the machine's network interfaces")


@check("VMIE-GEN-11")
def no_connected_cd_drive(facts: Facts) -> Iterator[Outcome]:
    """No Item of ResourceType 15 or 16 in the OVF descriptor has a medium (HostResource), and no line of fstab mounts
    a CD-ROM drive.
    """
    appliance = facts.source.appliance
    if appliance is not None:
        for item in items_of(facts, CD_DRIVES):
            if item.host_resource:
                yield failed(
                    f"{appliance.descriptor_name}: the drive with InstanceID {item.instance_id} holds "
                    f"{item.host_resource}"
                )
            elif item.automatic_allocation == "true":
                yield failed(
                    f"{appliance.descriptor_name}: the drive with InstanceID {item.instance_id} is connected at start"
                )
    if facts.linux is not None and facts.linux.fstab is not None:
        for entry in facts.linux.fstab.entries:
            if entry.spec.startswith(("/dev/sr", "/dev/cdrom", "/dev/scd", "/dev/dvd")):
                yield failed(f"/etc/fstab:{entry.line}: {entry.spec} at {entry.file}")
    if appliance is None:
        yield not_checked("which drives the machine has is not in the image")
