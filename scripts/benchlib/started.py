"""Bars P8 and P11: what it costs to start, open an image and say something about it."""

from collections.abc import Iterator, Mapping, Sequence

from benchlib.commands import Argument, run
from benchlib.context import Context
from benchlib.dataset import MIB, SPARSE_VARIANTS, size_text
from benchlib.pairs import DISKFS, Bar, Comparison, Samples, Unit, measure_in_turn, median_ratio

QEMU = "qemu-img info, qemu-io"
INTERPRETER = "python -c pass"


class _Commands:
    """Commands run one after the other: their time together, and the peak memory of any of them so far."""

    def __init__(self, *commands: Sequence[Argument]) -> None:
        self._commands = commands
        self.max_rss = 0

    def __call__(self, _pair: int) -> float:
        finished = [run(command) for command in self._commands]
        self.max_rss = max(self.max_rss, *(one.max_rss for one in finished))
        return sum(one.seconds for one in finished)


def open_sparse(context: Context) -> Iterator[Comparison]:
    """P8: `info` and the first byte of a huge disk with little in it, in every format."""
    size = size_text(context.data.scale.sparse_size)
    for variant in SPARSE_VARIANTS:
        image = context.data.sparse(variant)
        ours = _Commands(
            [context.diskfs, "info", image],
            [context.diskfs, "cat", image, "--offset", "0", "--length", "1"],
        )
        qemu = _Commands(["qemu-img", "info", image], ["qemu-io", "-r", "-c", "read 0 512", image])
        start_interpreter = [*context.interpreter, "-c", "pass"]
        twice = _Commands(start_interpreter, start_interpreter)  # Because two commands of ours are measured.
        samples = _measure(context, f"P8 {variant}", {DISKFS: ours, QEMU: qemu, INTERPRETER: twice})
        opening = [ours - start for ours, start in zip(samples[DISKFS], samples[INTERPRETER], strict=True)]
        yield Comparison(
            bar_id="P8",
            work=f"{size} {variant}: open; ratio without interpreter",
            unit=Unit.TIME,
            diskfs=tuple(samples[DISKFS]),
            peer_name=QEMU,
            peer=tuple(samples[QEMU]),
            measured=median_ratio(opening, samples[QEMU]),
            bar=Bar(at_least=False, limit=2.0),
        )
        yield Comparison(
            bar_id="P8",
            work=f"{size} {variant}: peak memory",
            unit=Unit.MEMORY,
            diskfs=(ours.max_rss,),
            peer_name=QEMU,
            peer=(qemu.max_rss,),
            measured=ours.max_rss / MIB,
            bar=Bar(at_least=False, limit=100.0, suffix=" MiB"),
        )


def start(context: Context) -> Iterator[Comparison]:
    """P11: the answer to `--help`, and `info` of a small local image."""
    yield _compared_start(context, "diskfs --help", [context.diskfs, "--help"], limit=5.0)
    yield _compared_start(
        context, "diskfs info, small image", [context.diskfs, "info", context.data.small()], limit=10.0
    )


def _compared_start(context: Context, work: str, command: Sequence[Argument], limit: float) -> Comparison:
    pass_command = [*context.interpreter, "-c", "pass"]
    samples = _measure(context, f"P11 {work}", {DISKFS: _Commands(command), INTERPRETER: _Commands(pass_command)})
    return Comparison(
        bar_id="P11",
        work=work,
        unit=Unit.TIME,
        diskfs=tuple(samples[DISKFS]),
        peer_name=INTERPRETER,
        peer=tuple(samples[INTERPRETER]),
        measured=median_ratio(samples[DISKFS], samples[INTERPRETER]),
        bar=Bar(at_least=False, limit=limit),
    )


def _measure(context: Context, label: str, contenders: Mapping[str, _Commands]) -> Samples:
    for commands in contenders.values():
        commands(0)  # Programs and tables into the page cache, for every contender alike.
    return measure_in_turn(label, context.short_pairs, Unit.TIME, contenders, is_short=True)
