"""The hostile catalogue: every named file gets its verdict, in one line, in little time and memory, opening nothing
else. tests/hostile/catalogue.py makes the files; one child process with a small address space opens them all.
"""

import collections
import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest

from tests.helpers import ROOT, CorpusRow, corpus_rows
from tests.hostile.catalogue import CANARY_NAME, Hostile, catalogue
from tests.hostile.opening_child import CANARY
from tests.samples.vmdk_builder import Layout, build, stamped

SECONDS = 2.0
GROWTH = 64 << 20
MAX_MESSAGE = 1200
CASES = catalogue()
ROWS = [row for row in corpus_rows() if row.hostile and not row.is_member]
NEEDED = {f"T{number}" for number in (*range(1, 6), 7, *range(10, 20))}
Reports = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Reports:
    """What the child reported of each case and of each hostile file of the corpus."""
    folder = tmp_path_factory.mktemp("catalogue")
    (folder / CANARY_NAME).write_bytes(CANARY.ljust(512) * 64)
    jobs = []
    for number, case in enumerate(CASES):
        path = folder / str(number) / case.file_name
        path.parent.mkdir()
        case.make(path)
        first = number == 0 or case.format != CASES[number - 1].format
        jobs.append({"name": case.name, "location": str(path), "format": case.format_name, "warm_up": first})
    good = folder / "good.vmdk"
    good.write_bytes(bytes(build(stamped(64), Layout(grain=8, entries=16))))
    jobs.insert(0, {"name": "a good file", "location": str(good), "format": None})
    if ROWS:
        corpus = request.getfixturevalue("corpus")
        jobs += [{"name": row.path, "location": str(corpus / row.path), "format": None} for row in ROWS]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, "-W", "error", "-m", "tests.hostile.opening_child", str(folder / "jobs.json")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=240)
    assert result.returncode == 0, result.stderr[-2000:]
    found = {report["name"]: report for report in map(json.loads, result.stdout.splitlines()[:-1])}
    for job in jobs:
        found[job["name"]]["location"] = job["location"]
    return found


def verdict(report: dict[str, Any]) -> str:
    assert report["crash"] is None, report["crash"]
    return report["error"] or ("damaged" if "read_error" in report else "reads")


def test_the_good_file_is_read(reports: Reports) -> None:
    assert verdict(reports["a good file"]) == "reads"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_hostile_file_gets_its_verdict(case: Hostile, reports: Reports) -> None:
    report = reports[case.name]
    assert verdict(report) == case.expect, report["messages"][:3]
    assert "leaked" not in report


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.path)
def test_a_hostile_file_of_the_corpus_is_survived(row: CorpusRow, reports: Reports) -> None:
    verdict(reports[row.path])


def test_every_message_is_one_short_line_that_names_the_file(reports: Reports) -> None:
    for name, report in reports.items():
        files = os.listdir(os.path.dirname(report["location"]))
        for message in report["messages"]:
            assert message.isprintable(), f"{name}: {message!r}"
            assert len(message) <= MAX_MESSAGE, f"{name}: {len(message)} characters"
        if report["error"]:
            assert any(file in report["messages"][0] for file in files), f"{name}: {report['messages'][0]}"


def test_nothing_outside_of_its_folder_is_opened(reports: Reports) -> None:
    for name, report in reports.items():
        inside = os.path.dirname(report["location"]) + "/"
        outside = [path for path in report["opened"] if not os.path.normpath(path).startswith(inside)]
        assert outside == [], f"{name}: {outside}"


def test_each_takes_little_time_and_memory(reports: Reports) -> None:
    slowest = max(reports.values(), key=lambda report: report["seconds"])
    largest = max(reports.values(), key=lambda report: report["growth"])
    print(f"slowest: {slowest['name']}, {slowest['seconds']:.2f} s")
    print(f"largest: {largest['name']}, {largest['growth'] / (1 << 20):.1f} MiB")
    assert slowest["seconds"] <= SECONDS, slowest["name"]
    assert largest["growth"] <= GROWTH, largest["name"]


def test_the_catalogue_is_complete() -> None:
    threats = collections.Counter(threat for case in CASES for threat in case.threats)
    assert len(CASES) >= 200
    assert threats.keys() >= NEEDED
    assert {case.format for case in CASES} >= {"vmdk", "vhd", "vhdx", "qcow2", "vdi", "ova", "ovf", "raw"}
    cves = {threat for threat in threats if re.fullmatch(r"CVE-\d{4}-\d{4,}", threat)}
    assert len(cves) >= 19
    assert threats.keys() <= NEEDED | cves
