"""Runs the checks of the rules that apply to the request, and gathers what they say."""

from collections.abc import Iterator
from dataclasses import dataclass

from diskfs.preflight.facts import Facts
from diskfs.preflight.rules.catalogue import Mode, Rule, rules
from diskfs.preflight.rules.outcome import Outcome, Status, not_applicable, not_checked, unknown
from diskfs.preflight.rules.registry import checks
from diskfs_formats.errors import DiskfsError
from diskfs_formats.findings import Severity

MAX_OUTCOMES = 64
"""Statements of one check that are kept; a hostile image can break a rule a million times."""

_WORST_FIRST = (Status.FAIL, Status.UNKNOWN, Status.NOT_CHECKED, Status.PASS, Status.NOT_APPLICABLE)
_BY_WEIGHT = (Severity.ERROR, Severity.WARNING, Severity.INFO)
WHY_NOT = {
    Mode.NEEDS_API: "only AWS's API can tell",
    Mode.NEEDS_REQUEST: "it depends on the request",
    Mode.ADVICE: "nothing to check: advice for a person",
    Mode.CHECKED: "no check for this rule exists yet",
}


@dataclass(frozen=True, slots=True)
class Result:
    """How one rule fared. `outcomes` are those of its status, the gravest first."""

    rule: Rule
    status: Status
    severity: Severity
    outcomes: tuple[Outcome, ...]

    @property
    def found(self) -> str:
        """The evidence in one line."""
        return "; ".join(outcome.found for outcome in self.outcomes if outcome.found)

    @property
    def remedy(self) -> str:
        """What to do: the checks' own words, else the rule's."""
        own = dict.fromkeys(outcome.remedy for outcome in self.outcomes if outcome.remedy)
        return "; ".join(own) if own else self.rule.remedy

    @property
    def refuses(self) -> bool:
        """Whether the service would refuse because of it."""
        return self.status is Status.FAIL and self.severity is Severity.ERROR


def run(facts: Facts) -> list[Result]:
    """Run every rule that applies to the operation, in the order of the catalogue."""
    operation = facts.request.operation.value
    return [run_rule(rule, facts) for rule in rules().values() if operation in rule.operations]


def run_rule(rule: Rule, facts: Facts) -> Result:
    """Run one rule."""
    outcomes = list(_outcomes(rule, facts))
    status = next(status for status in _WORST_FIRST if any(outcome.status is status for outcome in outcomes))
    kept = [outcome for outcome in outcomes if outcome.status is status]
    kept.sort(key=lambda outcome: _BY_WEIGHT.index(outcome.severity or rule.severity))
    return Result(rule, status, kept[0].severity or rule.severity, tuple(kept))


def _outcomes(rule: Rule, facts: Facts) -> Iterator[Outcome]:
    check = checks().get(rule.id)
    if check is None:
        yield not_checked(WHY_NOT[rule.mode])
        return
    if rule.guest != "any" and not check.any_guest and rule.guest not in facts.guests:
        if facts.guests or facts.guest_error is None:
            yield not_applicable(f"no {rule.guest.capitalize()} was found")
        else:
            yield unknown(f"what system is on the disks is not known: {facts.guest_error}")
        return
    count = 0
    try:
        for outcome in check.function(facts):
            count += 1
            if count > MAX_OUTCOMES:
                return
            yield outcome
    except DiskfsError as error:
        count += 1
        yield unknown(str(error))
    if not count:
        yield Outcome(Status.PASS)
