"""Known disagreements: which of them is which, and the heading of docs/DIFFERENTIAL.md that decides it."""

from collections.abc import Callable
from dataclasses import dataclass

from scripts.differentiallib.comparing import Disagreement


@dataclass(frozen=True, slots=True)
class Rule:
    """A disagreement that a specification decides. `id` is a heading of docs/DIFFERENTIAL.md."""

    id: str
    applies: Callable[[Disagreement], bool]


def _is_map(found: Disagreement, what: str) -> bool:
    return found.reader == "qemu-img" and found.what == what


RULES = (
    Rule(
        "vhd-size",
        lambda found: (
            found.what == "virtual size"
            and found.reader == "qemu-img"
            and found.specimen.shape.creator == b"vbox"
            and found.diskfs == str(found.specimen.size)
            and int(found.other) < found.specimen.size
        ),
    ),
    Rule(
        "vmdk-zeroed-grain",
        lambda found: (
            found.reader == "vmdkmount" and found.what == "content" and "zeroed_grain" in found.specimen.shape.options
        ),
    ),
    Rule(
        "vmdk-unsupported-by-libvmdk",
        lambda found: found.reader == "vmdkmount" and found.other == "Unsupported disk type.",
    ),
    Rule(
        "map-holes-of-the-file",
        lambda found: (
            (_is_map(found, "map: data") and "Flat" in found.specimen.shape.options)
            or (_is_map(found, "map: data") and "subformat=fixed" in found.specimen.shape.options)
            or (_is_map(found, "map: zero") and "preallocation=metadata" in found.specimen.shape.options)
        ),
    ),
    Rule(
        "map-of-a-parent",
        lambda found: (
            (_is_map(found, "map: present") and found.specimen.shape.backing in {"vdi", "vpc"})
            or (_is_map(found, "map of the parent") and found.specimen.shape.backing == "vhdx")
        ),
    ),
)


def rule_of(found: Disagreement) -> Rule | None:
    """Return the rule that a disagreement falls under; None if it is unknown."""
    return next((rule for rule in RULES if rule.applies(found)), None)
