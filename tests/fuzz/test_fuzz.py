"""A short tier of scripts/fuzz, and proof that it would see what it looks for."""

import ast
import dataclasses
import io
import random
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from diskfs_formats import registry
from diskfs_formats.driver import DiskImage, ImageInfo, Match, ProbeWindow, RelatedFiles
from diskfs_formats.errors import CorruptImage, OutOfRange
from diskfs_formats.extents import Extent, ExtentKind
from diskfs_formats.findings import Finding
from diskfs_formats.mapped import MappedImage
from diskfs_formats.registry import DRIVERS
from diskfs_formats.source import ByteSource
from diskfs_formats.vhdx.log import MAX_LOG_LENGTH
from scripts.fuzzlib import campaign, coverage, mutation, record
from scripts.fuzzlib.formats import FORMATS
from scripts.fuzzlib.running import MAX_GROWTH, Outcome, Runner, good_specimens
from scripts.fuzzlib.specimen import Draft, Format, Specimen, Structure, Text
from tests.helpers import ROOT
from tests.hostile.opening_child import Watch

RUNS = 150
SEED = "tests"


def test_every_driver_is_fuzzed() -> None:
    assert {driver.name for driver in DRIVERS} - {"raw"} == {form.driver for form in FORMATS.values()} - {None}


def test_a_short_campaign_over_all_formats_finds_nothing(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "fuzz"), "--runs", str(RUNS), "--seed", SEED]
    result = subprocess.run(
        [*command, "--save", str(tmp_path)], capture_output=True, text=True, check=False, timeout=240, cwd=ROOT
    )
    print(result.stdout)
    assert result.returncode == 0, result.stdout + result.stderr
    rows = {line.split()[0]: line.split()[1] for line in result.stdout.splitlines()[1:]}
    assert rows == dict.fromkeys(FORMATS, str(RUNS))
    assert list(tmp_path.iterdir()) == []


def test_only_a_log_that_is_to_be_replayed_is_read_besides_what_opening_may_read() -> None:
    # Run 10,593 of VHDX had a log of more than 4 MiB.
    more = {name: form.more_read for name, form in FORMATS.items() if form.more_read}
    assert more == {"vhdx": MAX_LOG_LENGTH}


@pytest.fixture(scope="module")
def specimens() -> dict[str, list[Specimen]]:
    return {name: list(form.specimens()) for name, form in FORMATS.items()}


def content(draft: Draft) -> tuple[int, list[tuple[int, bytes]]]:
    return draft.size, [(offset, bytes(data)) for offset, data in draft.pieces]


@pytest.mark.parametrize("name", FORMATS)
def test_every_good_file_that_is_made_here_opens(name: str, specimens: dict[str, list[Specimen]]) -> None:
    made = [specimen for specimen in specimens[name] if "/" not in specimen.name]
    assert good_specimens(FORMATS[name], made) == made


@pytest.mark.parametrize("name", FORMATS)
def test_a_run_is_the_same_whenever_it_is_made(name: str, specimens: dict[str, list[Specimen]]) -> None:
    made = [campaign.make_input(FORMATS[name], specimens[name], SEED, run)[0] for run in (7, 3, 7)]
    assert content(made[0]) == content(made[2])
    assert content(made[0]) != content(made[1])


@pytest.mark.parametrize("name", FORMATS)
def test_mending_a_good_file_changes_nothing(name: str, specimens: dict[str, list[Specimen]]) -> None:
    for specimen in specimens[name]:
        draft = specimen.draft.copy()
        FORMATS[name].mend(draft, random.Random(1))
        assert content(draft) == content(specimen.draft), specimen.name


@pytest.mark.parametrize("name", FORMATS)
def test_an_input_of_atheris_is_the_file_that_it_was_made_from(name: str, specimens: dict[str, list[Specimen]]) -> None:
    for number, specimen in enumerate(specimens[name]):
        draft, found = coverage.unpacked(coverage.packed(specimen.draft, number), specimens[name])
        assert found is specimen
        assert content(draft) == content(specimen.draft)


def test_a_draft_keeps_every_byte_of_a_file() -> None:
    data = bytes(5000) + b"x" * 9000 + bytes(20000) + b"y" + bytes(100)
    draft = Draft.of(data)
    assert draft.source("x").read_at(0, len(data)) == data
    assert len(draft) < len(data)


# ---- what is planted is found ----

LINE = Format("planted", "disk.raw", lambda: iter(()), lambda _draft: Structure(), driver="planted")
GOOD = Specimen("good", Draft([(0, b"good" + bytes(8188))], 8192))
BAD = Specimen("bad", Draft([(0, b"evil" + bytes(8188))], 8192))


class PlantedImage(MappedImage):
    """A disk of zeroes, on which a test plants a fault."""

    def __init__(self, source: ByteSource, fault: Callable[[], object]) -> None:
        super().__init__(source.name, ImageInfo("planted", "planted", 8192), [source])
        self.fault = fault

    def lookup(self, offset: int, /) -> Extent:
        if self._sources[0].read_at(0, 4) == b"evil":
            self.fault()
        return Extent(0, 8192, ExtentKind.HOLE)


class PlantedDriver:
    name = "planted"

    def __init__(self, fault: Callable[[], object]) -> None:
        self._fault = fault

    def probe(self, window: ProbeWindow, /) -> Match:
        return Match.SIGNATURE

    def open(self, source: ByteSource, related: RelatedFiles, /) -> DiskImage:
        return PlantedImage(source, self._fault)

    def check(self, source: ByteSource, related: RelatedFiles, /) -> Iterator[Finding]:
        return iter(())


def outcome_of(fault: Callable[[], object], monkeypatch: pytest.MonkeyPatch, watch: Watch | None = None) -> Outcome:
    monkeypatch.setattr(registry, "DRIVERS", (PlantedDriver(fault),))
    runner = Runner(LINE, watch)
    runner.warm_up([GOOD])
    assert runner.run(GOOD.draft, GOOD).finding == ""
    return runner.run(BAD.draft, BAD)


def fail(error: Exception) -> Callable[[], object]:
    def fault() -> object:
        raise error

    return fault


def once(fault: Callable[[], object]) -> Callable[[], object]:
    left = [fault]
    return lambda: left.pop()() if left else None


def spin() -> None:
    end = time.process_time() + 2.1
    while time.process_time() < end:
        pass


@pytest.mark.parametrize("error", [ZeroDivisionError(), MemoryError(), KeyError(1), OutOfRange("disk.raw"), OSError()])
def test_any_error_but_an_image_error_is_a_finding(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    assert outcome_of(fail(error), monkeypatch).finding.startswith(type(error).__name__ + " in ")


def test_an_image_error_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = outcome_of(fail(CorruptImage("disk.raw: bad")), monkeypatch)
    assert (outcome.finding, outcome.passed_header) == ("", True)


@pytest.mark.parametrize("message", ["disk.raw: \x1b[2J", "disk.raw:\nx", "disk.raw: \u202e", "disk.raw" + "x" * 2000])
def test_a_message_that_harms_a_terminal_is_a_finding(message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "BrokenPromise" in outcome_of(fail(CorruptImage(message)), monkeypatch).finding


def test_a_slow_run_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    assert outcome_of(once(spin), monkeypatch).finding == "slow: over 2 s"


def test_much_memory_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "memory" in outcome_of(once(lambda: bytearray(2 * MAX_GROWTH)), monkeypatch).finding


def test_an_opened_file_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def leak() -> None:
        io.open_code("/etc/hostname").close()

    assert outcome_of(leak, monkeypatch, Watch()).finding == "opened /etc/hostname"


def plant(draft: Draft, chance: random.Random) -> None:
    if chance.random() < 0.5:
        draft.write(0, b"evil")


DYING = dataclasses.replace(LINE, specimens=lambda: iter([GOOD]), reshape=plant)
DYING_CODE = """
import os, signal
from diskfs_formats import registry
from scripts.fuzzlib import campaign
from tests.fuzz import test_fuzz
registry.DRIVERS = (test_fuzz.PlantedDriver(lambda: os.kill(os.getpid(), signal.SIGKILL)),)
print(campaign.campaign(test_fuzz.DYING, seed="1", runs=60, seconds=None, jobs=2).counts)
"""


def test_a_process_that_dies_is_a_finding_and_the_campaign_goes_on() -> None:
    command = [sys.executable, "-c", DYING_CODE]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, cwd=ROOT)
    ((kind, count),) = ast.literal_eval(result.stdout).items()
    assert kind == "process ended by signal 9"
    assert count > 2


def test_a_map_that_contradicts_the_bytes_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PlantedImage, "read_at", lambda self, offset, length: b"\1" * length)
    monkeypatch.setattr(PlantedImage, "read_if_ready", lambda self, offset, length: None)
    monkeypatch.setattr(registry, "DRIVERS", (PlantedDriver(lambda: None),))
    assert "does not read as zero" in Runner(LINE).run(GOOD.draft, GOOD).finding


def test_a_finding_is_kept_and_gives_the_same_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    form = FORMATS["mbr"]
    found = campaign.Finding("a kind", form.name, 5, "details")
    path = campaign.save(found, form, SEED, tmp_path)
    draft, _ = campaign.make_input(form, list(form.specimens()), SEED, 5)
    assert path.read_bytes() == draft.source("x").read_at(0, draft.size)
    assert "run 5" in path.with_name(path.name + ".txt").read_text()
    assert "nothing is wrong" in campaign.reproduce(path, form)


def test_a_recorded_campaign_goes_on_behind_what_is_noted(tmp_path: Path) -> None:
    noted = tmp_path / "record"

    def fuzz(*arguments: str) -> str:
        command = [sys.executable, str(ROOT / "scripts" / "fuzz"), "--record", str(noted), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, cwd=ROOT)
        return done.stdout

    fuzz("--format", "mbr", "--runs", "30", "--jobs", "1")
    with noted.open("a") as file:
        file.write('{"format": "mbr", "se')  # the machine was stopped while it wrote
    fuzz("--format", "mbr", "--runs", "50", "--jobs", "2")
    fuzz("--format", "mbr", "--runs", "50", "--jobs", "2")
    assert [(part.first, part.runs) for part in record.parts(noted)] == [(0, 30), (30, 20)]
    assert "| mbr | 1 | 50 | " in fuzz("--summary")


def test_runs_in_pieces_are_the_same_runs() -> None:
    form = FORMATS["mbr"]
    specimens = list(form.specimens())

    def passed(first: int, runs: int) -> int:
        tally = campaign.campaign(form, seed=SEED, runs=runs, seconds=None, jobs=2, first=first, specimens=specimens)
        assert tally.runs == runs
        return tally.passed

    assert passed(0, 60) == passed(0, 25) + passed(25, 35)


def test_a_text_as_long_as_a_damaged_header_says_is_edited_in_little_memory() -> None:
    # A campaign's process ended by this, at run 585,550 of OVA: the header of a member promised 8 GiB.
    for seed in range(50):
        draft = Draft([(0, b"a line\n" * 1000), (1 << 20, b"tail")], 2 << 20)
        structure = Structure(texts=(Text(512, 1 << 33),))
        tracemalloc.start()
        try:
            mutation._edit(draft, structure, random.Random(seed), [])
            assert tracemalloc.get_traced_memory()[1] < 8 << 20
        finally:
            tracemalloc.stop()
        assert draft.size == 2 << 20
        assert content(draft)[1][1] == (1 << 20, b"tail")
