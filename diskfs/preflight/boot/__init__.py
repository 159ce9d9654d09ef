"""Facts about how the disks boot, whatever system is on them."""

from typing import TYPE_CHECKING

from diskfs.preflight.boot.facts import BootFacts

if TYPE_CHECKING:
    from diskfs.preflight.facts import Facts

__all__ = ["BootFacts", "gather"]


def gather(facts: "Facts") -> BootFacts:
    """Return the facts about starting the machine."""
    return BootFacts(facts.disks, facts.volumes, facts.request.boot_mode)
