"""The repository as a whole: what its documents say is there, is there."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from diskfs_formats.driver import ProbeWindow
from diskfs_formats.registry import DRIVERS, recognised_only
from diskfs_formats.source import MemorySource
from tests.helpers import ROOT

DOCUMENTS = sorted(
    path for folder in (".", "docs", "docs/decisions", "formats") for path in (ROOT / folder).glob("*.md")
)
PROMISES = range(1, 15)

LINK = re.compile(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)")
SCRIPT = re.compile(r"(?:scripts|\.ci)/[a-z-]+")
COMMAND = re.compile(r"(?:^[$#] |`)diskfs ([a-z]+(?:-[a-z]+)*)", re.MULTILINE)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def rows(name: str) -> Iterator[list[str]]:
    """Yield the cells of every table row of a document, without heads and rules."""
    lines = read(name).splitlines()
    for number, line in enumerate(lines):
        is_head = number + 1 < len(lines) and lines[number + 1].startswith("|--")
        if line.startswith("|") and not line.startswith("|--") and not is_head:
            yield [cell.strip() for cell in line.strip("|").split("|")]


def section(text: str, title: str) -> str:
    """Return what stands under the headings that begin with `title`."""
    parts = re.split(r"^## ", text, flags=re.MULTILINE)
    found = [part for part in parts if part.startswith(title)]
    assert found, f"no section {title!r}"
    return "\n".join(found)


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_link_leads_to_a_file(document: Path) -> None:
    broken = [target for target in LINK.findall(document.read_text()) if not (document.parent / target).exists()]
    assert broken == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_script_that_is_named_can_be_run(document: Path) -> None:
    names = sorted(set(SCRIPT.findall(document.read_text())))
    assert [name for name in names if not os.access(ROOT / name, os.X_OK)] == []


def test_shell_scripts_stop_at_the_first_error() -> None:
    scripts = [path for folder in ("scripts", ".ci") for path in (ROOT / folder).iterdir() if path.is_file()]
    shell = [path for path in scripts if path.read_bytes().startswith(b"#!/usr/bin/env bash\n")]
    assert len(shell) >= 6
    assert [name_of(path) for path in shell if "\nset -euo pipefail\n" not in path.read_text()] == []


def test_the_readme_is_complete() -> None:
    assert "TODO" not in read("README.md")


@pytest.mark.parametrize("command", sorted(set(COMMAND.findall(read("README.md")))))
def test_every_command_of_the_readme_exists(command: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "diskfs", command, "--help"], capture_output=True, text=True, check=False, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'formats'}"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"usage: diskfs {command}")


def test_the_exit_codes_of_the_readme_are_those_of_the_program() -> None:
    from diskfs.cli import exit_codes

    documented = re.findall(r"^\| (\d+) \|", section(read("README.md"), "Exit codes"), re.MULTILINE)
    defined = [value for name, value in vars(exit_codes).items() if name.isupper()]
    assert sorted(map(int, documented)) == sorted(defined)


def test_every_promise_has_its_row() -> None:
    assert [int(cells[0]) for cells in rows("docs/SEMANTICS.md") if cells[0].isdigit()] == list(PROMISES)


@pytest.mark.parametrize("promise", PROMISES)
def test_a_promise_that_is_kept_names_tests_that_exist(promise: int) -> None:
    cells = next(cells for cells in rows("docs/SEMANTICS.md") if cells[0] == str(promise))
    _, _, status, tests = cells
    names = re.findall(r"`(tests/[^`]+)`", tests)
    if status.startswith("not yet"):
        assert names == []
        return
    assert status.startswith(("kept", "partly"))
    assert names
    assert [name for name in names if not (ROOT / name).is_file()] == []


def test_every_format_that_is_read_is_documented_and_no_other() -> None:
    table = section(read("docs/FORMATS.md"), "Read: disks")
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == {driver.name for driver in DRIVERS}


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("QED", b"QED\0"),
        ("Parallels", b"WithoutFreeSpace"),
        ("gzip", b"\x1f\x8b\x08"),
        ("xz", b"\xfd7zXZ\0"),
        ("zstd", b"\x28\xb5\x2f\xfd"),
        ("zip", b"PK\x03\x04"),
    ],
)
def test_a_format_is_documented_as_refused_exactly_while_it_is(name: str, head: bytes) -> None:
    refused = recognised_only(ProbeWindow.of(MemorySource(head.ljust(4096, b"\0"))))
    documented = section(read("docs/FORMATS.md"), "Recognised and refused by name")
    assert bool(refused) == bool(re.search(rf"\b{name}\b", documented))


def test_decisions_are_numbered_without_gaps_and_say_why() -> None:
    decisions = sorted((ROOT / "docs/decisions").glob("[0-9]*.md"))
    assert [int(path.name[:4]) for path in decisions] == list(range(len(decisions)))
    for path in decisions:
        text = path.read_text()
        assert text.startswith(f"# {path.name[:4]} ")
        assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["Context", "Options", "Decision", "Consequences"]


def test_decisions_that_the_code_refers_to_exist() -> None:
    code = [path for folder in ("diskfs", "formats", "tests", "scripts") for path in (ROOT / folder).rglob("*.py")]
    named = {name for path in code for name in re.findall(r"docs/decisions/[\w-]+\.md", path.read_text())}
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


def test_the_changelog_begins_with_what_is_unreleased() -> None:
    assert re.findall(r"^## (.*)$", read("CHANGELOG.md"), re.MULTILINE)[0] == "Unreleased"


def test_the_licence_is_complete() -> None:
    words = read("LICENSE").split()
    assert words[:4] == ["Apache", "License", "Version", "2.0,"]
    assert words[-4:] == ["limitations", "under", "the", "License."]
    assert len(words) == 1581
