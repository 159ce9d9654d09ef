"""Facts about Linux guests: read from their files, nothing of them is run."""

from typing import TYPE_CHECKING

from diskfs.preflight.linux.devices import Devices
from diskfs.preflight.linux.facts import LinuxFacts
from diskfs.preflight.linux.roots import find_roots

if TYPE_CHECKING:
    from diskfs.preflight.facts import Facts

__all__ = ["LinuxFacts", "gather"]


def gather(facts: "Facts") -> LinuxFacts | None:
    """Return the facts about the Linux system on the disks, None if there is none; raises what reading raises."""
    roots = find_roots(facts.volumes)
    if not roots:
        return None
    return LinuxFacts(roots, devices_of(facts), platform=facts.boot.likely_platform)


def devices_of(facts: "Facts") -> Devices:
    """Return the volumes by the names a guest has for them; disks that cannot be opened have no table."""
    tables = [disk.partitions[0] if disk.opened is not None else None for disk in facts.disks]
    return Devices(facts.volumes, facts.disks, tables)
