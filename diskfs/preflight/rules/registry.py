"""Which function checks which rule: `@check("VMIE-...")` in the modules of MODULES, one per area."""

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

from diskfs.preflight.rules.outcome import Outcome

if TYPE_CHECKING:
    from diskfs.preflight.facts import Facts

MODULES = (
    "containers", "sizes", "partitions", "hardware", "general", "licensing", "regions", "request", "exports",
    "boot", "linux", "linux_systems", "fstab", "network",
    "windows", "windows_systems", "windows_boot", "windows_updates",
)  # fmt: skip
"""The modules of this package that have checks."""

CheckFunction: TypeAlias = "Callable[[Facts], Iterable[Outcome]]"


@dataclass(frozen=True, slots=True)
class Check:
    """A check and the rule it is for."""

    rule_id: str
    function: CheckFunction
    any_guest: bool
    """Run it whatever operating system was found; else only for the rule's own."""

    @property
    def summary(self) -> str:
        """How the rule is checked: the first paragraph of the function's docstring."""
        text = self.function.__doc__ or ""
        return " ".join(text.split("\n\n")[0].split())


_CHECKS: dict[str, Check] = {}


def check(*rule_ids: str, any_guest: bool = False) -> Callable[[CheckFunction], CheckFunction]:
    """Declare the check of a rule (or of several that ask the same).

    The function yields an Outcome for each thing that it has looked at, or none at all: then the rule is kept. What it
    raises of DiskfsError makes the rule unknown. A rule about Linux (or Windows) is checked only if such a system was
    found, unless `any_guest`. The first paragraph of the docstring is printed as "how it is checked".
    """

    def declare(function: CheckFunction) -> CheckFunction:
        for rule_id in rule_ids:
            if rule_id in _CHECKS:
                raise ValueError(f"{rule_id} has two checks: {_CHECKS[rule_id].function} and {function}")
            _CHECKS[rule_id] = Check(rule_id, function, any_guest)
        return function

    return declare


@functools.cache
def checks() -> Mapping[str, Check]:
    """Return the check of every rule that has one, by the rule's id."""
    for name in MODULES:
        import_module(f"{__package__}.{name}")
    return MappingProxyType(_CHECKS)
