"""The answer in short: which system it is, how it will boot, which license it gets, what the service will change."""

import shlex
from dataclasses import dataclass

from diskfs.preflight.facts import Facts
from diskfs.preflight.request import Operation


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that the service will change in the guest; `where` is a file, or what it is about."""

    where: str
    what: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What can be predicted. None for what is not known."""

    os: str | None
    kernel: str | None
    architecture: str | None
    boot_mode: str | None
    boot_mode_reason: str
    license_type: str | None
    ena_support: bool | None
    changes: tuple[Change, ...]
    command: str


def answer(facts: Facts) -> Answer:
    """Predict; raises nothing for what cannot be known."""
    return Answer(None, None, None, None, "", None, None, (), suggested_command(facts))


def suggested_command(facts: Facts) -> str:
    """Return the command of the AWS command line that makes the request, with placeholders in angle brackets."""
    request = facts.request
    if request.operation in {Operation.EXPORT_IMAGE, Operation.EXPORT_INSTANCE, Operation.IMPORT_INSTANCE}:
        return ""
    return shlex.join(["aws", "ec2", request.operation.value])
