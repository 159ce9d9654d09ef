"""What a check says about one thing that it looked at."""

import enum
from dataclasses import dataclass

from diskfs_formats.findings import Severity


class Status(enum.Enum):
    """How a rule fared; the first four go into the report under these names."""

    FAIL = "fail"
    UNKNOWN = "unknown"
    """It could not be decided; `found` says why."""
    PASS = "pass"  # noqa: S105 - a verdict
    NOT_CHECKED = "not-checked"
    """It needs AWS's API, a parameter that was not given, or a person."""
    NOT_APPLICABLE = "not-applicable"
    """The rule is about something that this image or request has not."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One statement of a check. `found` is the evidence: file and line, registry value, byte offset.

    `remedy` replaces the rule's own where there is a better one for this image, such as a command to paste;
    `severity` replaces the rule's own where this case matters less (or more) than the rule does in general.
    """

    status: Status
    found: str = ""
    remedy: str | None = None
    severity: Severity | None = None


def passed(found: str = "") -> Outcome:
    """The rule is kept."""
    return Outcome(Status.PASS, found)


def failed(found: str, remedy: str | None = None, *, severity: Severity | None = None) -> Outcome:
    """The rule is broken."""
    return Outcome(Status.FAIL, found, remedy, severity)


def unknown(reason: str) -> Outcome:
    """It could not be decided, and why."""
    return Outcome(Status.UNKNOWN, reason)


def not_checked(reason: str) -> Outcome:
    """Something is missing that only the user or AWS can give: say what."""
    return Outcome(Status.NOT_CHECKED, reason)


def not_applicable(reason: str = "") -> Outcome:
    """The rule is about something that is not here."""
    return Outcome(Status.NOT_APPLICABLE, reason)
