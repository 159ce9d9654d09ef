"""Many executions in several processes, each with little memory. Run number N of a seed is always the same input."""

import contextlib
import hashlib
import multiprocessing
import random
import resource
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from scripts.fuzzlib import mutation
from scripts.fuzzlib.running import MAX_SECONDS, Outcome, Runner, good_specimens
from scripts.fuzzlib.specimen import Draft, Format, Specimen
from tests.hostile.opening_child import Watch

ADDRESS_SPACE = 1 << 30
"""Bytes of address space of a process: an outer net that is never reached."""
HANGING = 20.0
"""Seconds after which an execution is ended from inside; one that does not end then is ended from outside."""
NEEDED_SHARE = 0.6
"""Share of executions that must get past the header, or else a campaign has shown little."""
_REPORT_EVERY = 0.5
_OPENED = "opened"
"""Under this name the file is kept that was opened, where it is not the one that was changed."""

_fork = multiprocessing.get_context("fork")


class Hanging(Exception):
    """An execution takes so long that it is not waited for."""


class Finding(NamedTuple):
    """One thing that must not be: the first input that showed it, and how many did."""

    kind: str
    format: str
    run: int
    details: str


@dataclass
class Tally:
    """What a campaign has come to."""

    format: str
    runs: int = 0
    passed: int = 0
    slowest: float = 0.0
    slowest_run: int = 0
    growth: int = 0
    seconds: float = 0.0
    findings: dict[str, Finding] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """Share of runs that got past the header."""
        return self.passed / self.runs if self.runs else 0.0

    @property
    def is_good(self) -> bool:
        """Whether nothing was found, and enough was looked at."""
        return not self.counts and self.share >= NEEDED_SHARE

    def add(self, other: "Tally") -> None:
        """Take in what one process has done since it last reported."""
        self.runs += other.runs
        self.passed += other.passed
        self.growth = max(self.growth, other.growth)
        if other.slowest > self.slowest:
            self.slowest, self.slowest_run = other.slowest, other.slowest_run
        for kind, found in other.findings.items():
            if kind not in self.findings or found.run < self.findings[kind].run:
                self.findings[kind] = found
        for kind, count in other.counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + count

    def take(self, run: int, outcome: Outcome) -> None:
        """Take in one run."""
        self.runs += 1
        self.passed += outcome.passed_header
        self.growth = max(self.growth, outcome.growth)
        if outcome.seconds > self.slowest:
            self.slowest, self.slowest_run = outcome.seconds, run
        if outcome.finding:
            self.note(Finding(outcome.finding, self.format, run, outcome.details))

    def note(self, found: Finding) -> None:
        """Take in one finding."""
        self.findings.setdefault(found.kind, found)
        self.counts[found.kind] = self.counts.get(found.kind, 0) + 1


def make_input(form: Format, specimens: Sequence[Specimen], seed: str, run: int) -> tuple[Draft, Specimen]:
    """Return the input of one run: the same for the same seed, whatever ran before."""
    chance = random.Random(f"{seed}:{form.name}:{run}")
    return mutation.mutated(form, specimens, chance)


def campaign(
    form: Format,
    *,
    seed: str,
    runs: int | None,
    seconds: float | None,
    jobs: int,
    first: int = 0,
    specimens: Sequence[Specimen] | None = None,
) -> Tally:
    """Execute mutated inputs from number `first` on until there are enough, or until the time is up."""
    specimens = list(form.specimens()) if specimens is None else specimens
    end = 1 << 62 if runs is None else first + runs
    total = Tally(form.name)
    began = time.monotonic()
    deadline = None if seconds is None else began + seconds
    plan = _Plan(form, specimens, seed, deadline)
    workers = [_Worker(plan, range(first + number, end, jobs)) for number in range(jobs)]
    try:
        while alive := [worker for worker in workers if worker.process is not None]:
            wait([worker.reports for worker in alive], _REPORT_EVERY)
            for worker in alive:
                worker.look(total)
    finally:
        for worker in workers:
            worker.stop()
    total.seconds = time.monotonic() - began
    return total


class _Plan(NamedTuple):
    """What every process of a campaign does its part of."""

    form: Format
    specimens: Sequence[Specimen]
    seed: str
    deadline: float | None


class _Worker:
    """A process that executes every `step`th run, and is begun anew behind a run that it did not survive."""

    def __init__(self, plan: _Plan, runs: range) -> None:
        self._plan = plan
        self._current = _fork.Value("q", -1)
        self.process: ForkProcess | None = None
        self._start(runs)

    def _start(self, runs: range) -> None:
        self._runs = runs
        self.reports, theirs = _fork.Pipe(duplex=False)
        arguments = (self._plan, runs, self._current, theirs)
        self.process = _fork.Process(target=_work, args=arguments, daemon=True)
        self._current.value = -1
        self._seen, self._since = -1, time.monotonic()
        self.process.start()
        theirs.close()

    def look(self, total: Tally) -> None:
        """Take in what the process reports; deal with one that hangs or has died."""
        assert self.process is not None
        try:
            while self.reports.poll():
                report = self.reports.recv()
                if report is None:
                    self.stop()
                    return
                total.add(report)
        except EOFError:
            self._died(total, f"process ended by signal {-self._ended()}")
            return
        if self._current.value != self._seen:
            self._seen, self._since = self._current.value, time.monotonic()
        elif self._seen >= 0 and time.monotonic() - self._since > 3 * HANGING:
            self.process.kill()
            self._ended()
            self._died(total, "hangs, and had to be killed")

    def _ended(self) -> int:
        assert self.process is not None
        self.process.join()
        return self.process.exitcode or 0

    def _died(self, total: Tally, kind: str) -> None:
        run = self._current.value
        self.stop()
        if run < 0:
            raise RuntimeError(f"{self._plan.form.name}: {kind}, before the first run")
        total.runs += 1
        total.note(Finding(kind, self._plan.form.name, run, ""))
        self._start(range(run + self._runs.step, self._runs.stop, self._runs.step))

    def stop(self) -> None:
        """End the process, if it has not."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.reports.close()
            self.process = None


def _work(plan: _Plan, runs: range, current: Any, reports: Connection) -> None:
    """Execute runs in a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    tally = Tally(plan.form.name)
    reported = time.monotonic()
    for run, outcome in _executed(plan, runs, current):
        tally.take(run, outcome)
        now = time.monotonic()
        if outcome.finding or now - reported > _REPORT_EVERY:
            reports.send(tally)
            tally, reported = Tally(plan.form.name), now
        if plan.deadline is not None and now > plan.deadline:
            break
    reports.send(tally)
    reports.send(None)


def _executed(plan: _Plan, runs: range, current: Any) -> Iterator[tuple[int, Outcome]]:
    """Execute runs one by one, each number in `current` before it begins."""
    # Not before the fork: the threads of the reading engine would be left behind in the parent.
    specimens = good_specimens(plan.form, plan.specimens)
    if not specimens:
        return
    runner = Runner(plan.form, Watch())
    runner.warm_up(specimens)
    for run in runs:
        current.value = run
        draft, specimen = make_input(plan.form, specimens, plan.seed, run)
        with _ended_when_hanging():
            outcome = runner.run(draft, specimen)
        yield run, outcome


@contextlib.contextmanager
def _ended_when_hanging() -> Iterator[None]:
    """Raise Hanging in what runs within once it has used a multiple of the time that it may take."""
    signal.signal(signal.SIGPROF, _raise_hanging)
    signal.setitimer(signal.ITIMER_PROF, HANGING)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _raise_hanging(_signal: int, _frame: FrameType | None) -> None:
    raise Hanging(f"over {HANGING:.0f} s of processor time, at most {MAX_SECONDS:.0f} are allowed")


def save(found: Finding, form: Format, seed: str, folder: Path, specimens: Sequence[Specimen] | None = None) -> Path:
    """Keep the input of a finding: the file, named by its hash, and beside it how it was made."""
    specimens = list(form.specimens()) if specimens is None else specimens
    draft, specimen = make_input(form, good_specimens(form, specimens), seed, found.run)
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(b"".join(b"%d:" % offset + data for offset, data in draft.pieces)).hexdigest()[:16]
    path = folder / f"{form.name}-{digest}"
    draft.save(path)
    beside = {**specimen.beside, **({_OPENED: specimen.opened} if specimen.opened else {})}
    for name, data in beside.items():
        (folder / f"{path.name}.beside").mkdir(exist_ok=True)
        (folder / f"{path.name}.beside" / name).write_bytes(data)
    text = f"{found.kind}\nformat {form.name}, seed {seed}, run {found.run}, from {specimen.name!r}\n{found.details}"
    path.with_name(path.name + ".txt").write_text(text)
    return path


def reproduce(path: Path, form: Format) -> str:
    """Execute a kept input in this process; return what it gives, in lines for a reader."""
    beside = path.with_name(path.name + ".beside")
    files = {each.name: each.read_bytes() for each in beside.iterdir()} if beside.is_dir() else {}
    runner = Runner(form)
    runner.warm_up(good_specimens(form, [*form.specimens()]))
    draft = Draft.of(path.read_bytes())
    outcome = runner.run(draft, Specimen(path.name, draft, files, files.pop(_OPENED, b"")))
    facts = (
        f"header accepted: {'yes' if outcome.passed_header else 'no'}; opening: {outcome.error or 'no error'}; "
        f"{outcome.seconds * 1000:.1f} ms, {max(outcome.growth, 0) >> 10} KiB more memory"
    )
    shown = [f"{path}: {outcome.finding or 'nothing is wrong'}", facts, *dict.fromkeys(outcome.messages[:20])]
    return "\n".join([*shown, outcome.details] if outcome.details else shown)
