"""The rules of AWS VM Import/Export, and the errors it reports, as data (`diskfs/preflight/data`).

The data restates the service's user guide (https://docs.aws.amazon.com/vm-import/latest/userguide/, July 2025).
"""

import enum
import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from types import MappingProxyType
from typing import Any

from diskfs_formats.findings import Severity

USER_GUIDE = "https://docs.aws.amazon.com/vm-import/latest/userguide/"


class Mode(enum.Enum):
    """What a rule can be decided from."""

    CHECKED = "checked"
    """From the image."""
    NEEDS_REQUEST = "needs-request"
    """From parameters of the request, perhaps with the image."""
    NEEDS_API = "needs-api"
    """Only by asking AWS."""
    ADVICE = "advice"
    """Not by a program."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. `guest` is `any`, `linux` or `windows`; `message` is what the service would say, None if not known."""

    id: str
    operations: frozenset[str]
    guest: str
    severity: Severity
    mode: Mode
    statement: str
    message: str | None
    remedy: str
    decisions: tuple[str, ...]
    """How ambiguities of the guide are decided here."""
    partial: bool
    """What the image shows is a hint, or decides some cases only."""

    @property
    def group(self) -> str:
        """The area: BOOT of VMIE-BOOT-08."""
        return self.id.split("-")[1]


@dataclass(frozen=True, slots=True)
class ErrorEntry:
    """One entry of the guide's troubleshooting chapter."""

    id: str
    where: str
    messages: tuple[str, ...]
    """The wordings that are known, the current one first; `<...>` stands for anything."""
    meaning: str
    remedy: str
    rules: tuple[str, ...]


def load(name: str) -> dict[str, Any]:
    """Return a data file of the package."""
    with files("diskfs.preflight").joinpath("data", name).open("rb") as file:
        return tomllib.load(file)


@functools.cache
def rules() -> Mapping[str, Rule]:
    """Return every rule by its id, in the guide's order."""
    found = {}
    for entry in load("rules.toml")["rule"]:
        found[entry["id"]] = Rule(
            id=entry["id"],
            operations=frozenset(entry["operations"]),
            guest=entry["guest"],
            severity=Severity(entry["severity"]),
            mode=Mode(entry["mode"]),
            statement=entry["statement"],
            message=entry.get("message"),
            remedy=entry.get("remedy", ""),
            decisions=tuple(entry.get("decisions", ())),
            partial=entry.get("partial", False),
        )
    return MappingProxyType(found)


@functools.cache
def errors() -> tuple[ErrorEntry, ...]:
    """Return the entries of the troubleshooting chapter."""
    return tuple(
        ErrorEntry(
            id=entry["id"],
            where=entry["where"],
            messages=tuple(entry["messages"]),
            meaning=entry["meaning"],
            remedy=entry.get("remedy", ""),
            rules=tuple(entry["rules"]),
        )
        for entry in load("errors.toml")["error"]
    )
