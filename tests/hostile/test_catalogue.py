"""The hostile catalogue: every named file gets its verdict, in one line, in little time and memory, opening nothing
else. tests/hostile/catalogue.py makes the files; one child process with a small address space opens them all.
"""

import collections
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
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


@dataclass(frozen=True, slots=True)
class Prepared:
    """Every hostile file, made, and what a child is to do with them."""

    folder: Path
    jobs: tuple[dict[str, Any], ...]

    def command(self) -> list[str]:
        """What does it; to be run in the repository."""
        return [sys.executable, "-W", "error", "-m", "tests.hostile.opening_child", str(self.folder / "jobs.json")]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Prepared:
    """Each case in a folder of its own, and above them the canary that none may reach."""
    folder = tmp_path_factory.mktemp("catalogue")
    (folder / CANARY_NAME).write_bytes(CANARY.ljust(512) * 64)
    jobs = []
    for number, case in enumerate(CASES):
        path = folder / str(number) / case.file_name
        path.parent.mkdir()
        case.make(path)
        first = number == 0 or case.format != CASES[number - 1].format
        jobs.append({"name": case.name, "location": str(path), "format": case.format_name, "warm_up": first})
    good = folder / "good" / "good.vmdk"
    good.parent.mkdir()
    good.write_bytes(bytes(build(stamped(64), Layout(grain=8, entries=16))))
    jobs.insert(0, {"name": "a good file", "location": str(good), "format": None})
    if ROWS:
        corpus = request.getfixturevalue("corpus")
        jobs += [{"name": row.path, "location": str(corpus / row.path), "format": None} for row in ROWS]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    return Prepared(folder, tuple(jobs))


@pytest.fixture(scope="module")
def reports(prepared: Prepared) -> Reports:
    """What the child reported of each case and of each hostile file of the corpus."""
    result = subprocess.run(prepared.command(), capture_output=True, text=True, check=False, cwd=ROOT, timeout=240)
    assert result.returncode == 0, result.stderr[-2000:]
    found = {report["name"]: report for report in map(json.loads, result.stdout.splitlines()[:-1])}
    assert found.keys() == {job["name"] for job in prepared.jobs}
    for job in prepared.jobs:
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


OPENING = re.compile(r"(?:open|openat|openat2|creat|execve)\((?:[^,\"]*, )?\"(?P<path>(?:[^\"\\]|\\.)*)\"")
MARK = "/proc/self/clear_refs"
"""What the child opens itself before each job."""
OF_THE_CHILD = (
    "/proc/self/",
    "/sys/devices/system/cpu/",
    "/sys/fs/cgroup/",
    "/etc/ld.so.",
    "/lib",
    "/usr/lib",
    "/usr/share/zoneinfo/",
)
"""Folders and files that the interpreter and the C library open for themselves."""


def opened_by_system_calls(log: str) -> Iterator[list[str]]:
    """Yield for each job the paths that it has asked the kernel to open; first what came before the first job."""
    found: list[str] = []
    for line in log.splitlines():
        assert not re.search(r"\b(socket|connect)\(", line), line
        if match := OPENING.search(line):
            path = match["path"].encode("latin-1").decode("unicode_escape").encode("latin-1").decode()
            if path == MARK:
                yield found
                found = []
            else:
                found.append(path)
    yield found


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed: run scripts/setup")
def test_the_kernel_is_asked_for_nothing_outside_of_a_folder(prepared: Prepared, tmp_path: Path) -> None:
    log = tmp_path / "system-calls"
    trace = ["strace", "-f", "-qq", "-s", "4096", "-o", str(log)]
    calls = ["-e", "trace=open,openat,openat2,creat,execve,socket,connect", "-e", "signal=none"]
    result = subprocess.run(
        [*trace, *calls, *prepared.command()], capture_output=True, text=True, check=False, cwd=ROOT, timeout=240
    )
    if "ptrace" in result.stderr and result.returncode:
        pytest.skip(f"this machine does not let strace trace: {result.stderr.strip()[:200]}")
    assert result.returncode == 0, result.stderr[-2000:]
    jobs = [job for number, job in enumerate(prepared.jobs) if number == 0 or job.get("warm_up")] + [*prepared.jobs]
    _, *of_each = opened_by_system_calls(log.read_text("latin-1"))
    assert len(of_each) == len(jobs)
    libraries = (sys.prefix, sys.base_prefix, str(ROOT / "diskfs"), str(ROOT / "formats"), str(ROOT / "tests"))
    opened = 0
    for job, paths in zip(jobs, of_each, strict=True):
        inside = os.path.dirname(job["location"]) + "/"
        for path in paths:
            # A path with `..` in it is taken as what it leads to.
            if os.path.normpath(path).startswith(inside):
                opened += 1
            else:
                assert os.path.normpath(path).startswith((*libraries, *OF_THE_CHILD)), f"{job['name']}: {path}"
    # Nearly each has a file that is opened: the log is of the right process.
    assert opened > len(prepared.jobs) * 0.9


def test_a_look_at_a_canary_would_be_seen(prepared: Prepared, tmp_path: Path) -> None:
    assert list(opened_by_system_calls('1 openat(AT_FDCWD, "/a/\\303\\244\\"", O_RDONLY) = 3')) == [['/a/\u00e4"']]
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed: run scripts/setup")
    log, canary = tmp_path / "log", prepared.folder / CANARY_NAME
    command = ["strace", "-f", "-qq", "-e", "trace=openat", "-o", str(log), "cat", str(canary)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let strace trace")
    assert str(canary) in [path for paths in opened_by_system_calls(log.read_text("latin-1")) for path in paths]


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
