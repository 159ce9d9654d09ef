"""The rules as data: all of them, decided, and each that an image can decide has a check with tests."""

import re
from collections import Counter
from pathlib import Path

import pytest

from diskfs.preflight.rules.catalogue import Mode, errors, rules
from diskfs.preflight.rules.registry import checks
from diskfs.preflight.supported_os import linux_systems, regions_without, windows_systems

TESTS = Path(__file__).parent
NOT_YET: frozenset[str] = frozenset()
"""Rules that an image can decide and that have no check yet. It only ever gets shorter."""


def test_all_rules_are_here() -> None:
    assert len(rules()) == 200
    assert Counter(rule.severity.value for rule in rules().values()) == {"error": 116, "warning": 43, "info": 41}
    assert Counter(rule.mode for rule in rules().values()) == {
        Mode.CHECKED: 84 + 25, Mode.NEEDS_API: 47, Mode.NEEDS_REQUEST: 28, Mode.ADVICE: 16,
    }  # fmt: skip
    assert sum(rule.partial for rule in rules().values()) == 25
    sizes = {
        "FMT": 14, "SIZE": 5, "GEN": 15, "OS": 14, "FS": 6, "BOOT": 12, "LIN": 17, "WIN": 31, "SNAP": 6, "INST": 6,
        "LIC": 15, "S3": 11, "IAM": 13, "SEC": 7, "EXP": 24, "TASK": 4,
    }  # fmt: skip
    assert Counter(rule.group for rule in rules().values()) == sizes


def test_all_errors_are_here_and_name_rules() -> None:
    assert len(errors()) == 35
    for entry in errors():
        assert entry.rules
        assert set(entry.rules) <= set(rules())


def test_every_ambiguity_is_decided() -> None:
    decided = {match for rule in rules().values() for text in rule.decisions for match in re.findall(r"A-\d\d", text)}
    assert decided == {f"A-{number:02}" for number in range(1, 26)}


def test_no_text_speaks_of_what_the_reader_has_not() -> None:
    for rule in rules().values():
        for text in (rule.statement, rule.remedy, rule.message or "", *rule.decisions):
            assert not re.search(r"rules\.md|api-flows|programmatic-changes|\[\+\]|^-$| see A-", text), rule.id


def test_every_rule_that_an_image_decides_has_a_check() -> None:
    without = {rule.id for rule in rules().values() if rule.mode is Mode.CHECKED} - set(checks())
    print(f"without a check: {sorted(without) or 'none'}")
    assert without == NOT_YET


def test_every_check_is_of_a_rule_and_says_how() -> None:
    assert set(checks()) <= set(rules())
    for check in checks().values():
        assert check.summary.endswith("."), check.rule_id
        assert rules()[check.rule_id].mode not in {Mode.NEEDS_API, Mode.ADVICE}, check.rule_id


def test_every_check_is_named_by_a_test() -> None:
    texts = "".join(path.read_text() for path in TESTS.rglob("*.py") if path != Path(__file__))
    unnamed = {rule_id for rule_id in checks() if rule_id not in texts}
    print(f"checks that no test names: {sorted(unnamed) or 'none'}")
    assert not unnamed


@pytest.mark.parametrize(
    ("system", "version", "pack", "kernel", "listed"),
    [
        ("debian", "12.4", None, "6.1.0-18-amd64", True), ("debian", "12.5", None, "6.1.0-18-amd64", None),
        ("rhel", "6.5", None, "2.6.32-71.el6.x86_64", False), ("rhel", "6.5", None, "2.6.32-754.el6", True),
        ("rhel", "6.5", None, "2.6.32-710.el6", True), ("rhel", "9.5", None, "5.15.0-1.el9", True),
        ("rhel", "8.10", None, "4.18.0", None), ("centos", "8.2", None, "4.18.0-193", True),
        ("centos", "8.3", None, "4.18.0", None), ("centos", "5.11", None, "2.6.18-398.el5", True),
        ("amazon-linux-2", "2", None, "4.14.336-257.562.amzn2.x86_64", True),
        ("amazon-linux-2", "2", None, "4.140.1", False), ("sles", "12", 5, "4.12.14-120", True),
        ("sles", "12", 1, "4.12.14", False), ("sles", "15", 7, "6.4.0", None), ("sles", "15", 0, "4.12.14", True),
        ("oracle-linux", "9.6", None, "6.12.0-1.el9uek.x86_64", True), ("ubuntu", "24.04", None, "6.11.0-17", True),
        ("oracle-linux", "5.11", None, "2.6.39-400.el5uek", True),
        ("oracle-linux", "5.11", None, "2.6.18-398.el5", False),
    ],
)  # fmt: skip
def test_systems_and_kernels(system: str, version: str, pack: int | None, kernel: str, listed: bool | None) -> None:
    """`listed` is None for a version that is not in the table, else whether the kernel is."""
    rows = next(one for one in linux_systems() if one.id == system).rows_for(version, pack)
    assert (any(row.takes_kernel(kernel) for row in rows) if rows else None) is listed


def test_windows_and_regions() -> None:
    assert len(windows_systems()) == 17
    found = [one.id for one in windows_systems() if one.has_build(22631)]
    assert found == ["win11"]
    assert [one.id for one in windows_systems() if one.has_build(19046)] == []
    assert regions_without("VMIE-OS-13") == {"cn-north-1", "cn-northwest-1"}
    assert len(regions_without("VMIE-OS-14")) == 8
