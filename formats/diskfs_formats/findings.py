"""What a check noticed about an image: named, so that scripts and tests can refer to it."""

import enum
from dataclasses import dataclass


class Severity(enum.Enum):
    """How much a finding matters."""

    INFO = "info"
    """Worth knowing; nothing is wrong."""
    WARNING = "warning"
    """Outside the specification, and read all the same without guessing."""
    ERROR = "error"
    """Some bytes of the disk cannot be trusted or read."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing noticed: `rule` is a stable name such as `gpt-backup-header-used`."""

    rule: str
    severity: Severity
    message: str
    remedy: str = ""
