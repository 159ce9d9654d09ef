"""How outcomes of a check become the result of a rule, and how facts are gathered once."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from diskfs.preflight.facts import Facts, fact
from diskfs.preflight.request import Request
from diskfs.preflight.rules import engine
from diskfs.preflight.rules.catalogue import Mode, Rule, rules
from diskfs.preflight.rules.engine import MAX_OUTCOMES, Result, run_rule
from diskfs.preflight.rules.outcome import (
    Outcome,
    Status,
    failed,
    not_applicable,
    not_checked,
    passed,
    unknown,
)
from diskfs.preflight.rules.registry import Check, check, checks
from diskfs_formats.errors import CorruptImage
from diskfs_formats.findings import Severity
from tests.preflight.checking import MIB, disk, result_of, status_of

RULE = rules()["VMIE-FMT-01"]


class Guest(Facts):
    """Facts of a machine with some systems on it."""

    def __init__(self, *found: str, error: str = "") -> None:
        super().__init__(Request(), "disk.raw", None)
        self.__dict__["guests"] = frozenset(found)
        self.guest_error = CorruptImage(error) if error else None


def run_with(
    monkeypatch: pytest.MonkeyPatch, *outcomes: Outcome | Exception, rule: Rule = RULE, facts: Facts | None = None,
    any_guest: bool = False,
) -> Result:  # fmt: skip
    def function(_: Facts) -> Iterator[Outcome]:
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
            yield outcome

    monkeypatch.setattr(engine, "checks", lambda: {rule.id: Check(rule.id, function, any_guest)})
    return run_rule(rule, facts or Guest("linux"))


@pytest.mark.parametrize(
    ("outcomes", "status", "found"),
    [
        ([], Status.PASS, ""), ([passed("a")], Status.PASS, "a"), ([passed("a"), failed("b")], Status.FAIL, "b"),
        ([failed("a"), unknown("b"), failed("c")], Status.FAIL, "a; c"),
        ([unknown("a"), passed("b")], Status.UNKNOWN, "a"),
        ([not_checked("a"), passed("b")], Status.NOT_CHECKED, "a"), ([not_applicable("a")], Status.NOT_APPLICABLE, "a"),
        ([not_applicable("a"), passed("b")], Status.PASS, "b"), ([CorruptImage("broken")], Status.UNKNOWN, "broken"),
        ([failed("a"), CorruptImage("broken")], Status.FAIL, "a"),
        ([passed("a"), CorruptImage("broken")], Status.UNKNOWN, "broken"),
    ],
)  # fmt: skip
def test_the_gravest_outcome_decides(
    monkeypatch: pytest.MonkeyPatch, outcomes: list[Any], status: Status, found: str
) -> None:
    result = run_with(monkeypatch, *outcomes)
    assert (result.status, result.found) == (status, found)


def test_a_lesser_statement_does_not_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    hint = failed("hint", severity=Severity.WARNING)
    result = run_with(monkeypatch, hint)
    assert (result.severity, result.refuses) == (Severity.WARNING, False)
    result = run_with(monkeypatch, hint, failed("certain"))
    assert (result.severity, result.refuses) == (Severity.ERROR, True)
    assert result.found == "certain; hint"


def test_the_check_knows_a_better_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_with(monkeypatch, failed("a")).remedy == RULE.remedy
    assert run_with(monkeypatch, failed("a", "do x"), failed("b", "do x"), failed("c", "do y")).remedy == "do x; do y"


def test_statements_without_end_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(run_with(monkeypatch, *(failed(str(n)) for n in range(10 * MAX_OUTCOMES))).outcomes) == MAX_OUTCOMES


@pytest.mark.parametrize(
    ("facts", "any_guest", "status"),
    [
        (Guest("linux"), False, Status.FAIL), (Guest("windows"), False, Status.NOT_APPLICABLE),
        (Guest(), False, Status.NOT_APPLICABLE), (Guest(error="damaged"), False, Status.UNKNOWN),
        (Guest("windows", error="damaged"), False, Status.NOT_APPLICABLE), (Guest(), True, Status.FAIL),
    ],
)  # fmt: skip
def test_a_rule_about_linux_needs_linux(
    monkeypatch: pytest.MonkeyPatch, facts: Facts, any_guest: bool, status: Status
) -> None:
    rule = dataclasses.replace(RULE, guest="linux")
    assert run_with(monkeypatch, failed("a"), rule=rule, facts=facts, any_guest=any_guest).status is status


@pytest.mark.parametrize("mode", list(Mode))
def test_a_rule_without_a_check_is_not_checked(monkeypatch: pytest.MonkeyPatch, mode: Mode) -> None:
    monkeypatch.setattr(engine, "checks", dict)
    result = run_rule(dataclasses.replace(RULE, mode=mode), Guest())
    assert result.status is Status.NOT_CHECKED
    assert result.found


def test_a_rule_has_one_check() -> None:
    assert RULE.id in checks()
    with pytest.raises(ValueError, match="VMIE-FMT-01 has two checks"):
        check("VMIE-FMT-01")(lambda _: ())


def test_facts_are_gathered_once_errors_included() -> None:
    calls: list[str] = []

    class More(Facts):
        @fact
        def size(self) -> int:
            """A number."""
            calls.append("size")
            return 7

        @fact
        def damage(self) -> int:
            """A number that cannot be had."""
            calls.append("damage")
            raise CorruptImage("damaged")

    facts = More(Request(), "disk.raw", None)
    assert (facts.size, facts.size) == (7, 7)
    for _ in range(2):
        with pytest.raises(CorruptImage, match="damaged"):
            _ = facts.damage
    assert calls == ["size", "damage"]


def test_a_volume_that_is_not_read_may_hold_the_system(tmp_path: Path) -> None:
    """JFS is a file system that the guide lists: that nothing was found on it is not that nothing is there."""
    image = disk(tmp_path / "disk.raw", "start=2048, type=83, bootable\n")
    with image.open("r+b") as file:  # the superblock's magic; not every release has the package of mkfs.jfs
        file.seek(MIB + 32768)
        file.write(b"JFS1")
    for rule in ("VMIE-LIN-12", "VMIE-BOOT-10", "VMIE-WIN-01"):
        found = result_of(image, rule)
        assert found.status.value == "unknown"
        assert found.found == (
            "what system is on the disks is not known: not all volumes could be looked into: disk0p1: JFS is "
            "recognised and not read"
        )
    assert status_of(disk(tmp_path / "empty.raw", "start=2048, type=83\n"), "VMIE-LIN-12") == "not-applicable"
