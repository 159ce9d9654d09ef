"""Side by side: measures contenders in turn and holds what comes of it against a bar."""

import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from benchlib import caches

DISKFS = "diskfs"

Samples = dict[str, list[float]]
"""What each contender reached, one number per pair."""


class Unit(Enum):
    """What a measurement counts: how much of the base unit one unit of print is, and its name."""

    THROUGHPUT = (1e6, "MB/s")
    RATE = (1.0, "/s")
    TIME = (1e-3, "ms")
    MEMORY = (float(1 << 20), "MiB")
    COUNT = (1.0, "")

    def text(self, value: float) -> str:
        one, name = self.value
        number = value / one
        return (f"{number:,.0f} {name}" if number >= 100 or not name else f"{number:.1f} {name}").rstrip()


@dataclass(frozen=True, slots=True)
class Bar:
    """What is wanted of a number: to be at least, or at most, `limit`. `suffix` is for print."""

    at_least: bool
    limit: float
    suffix: str = "x"

    def is_reached(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.limit:g}{self.suffix}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """One line of the result: diskfs beside one peer at one piece of work.

    `measured` is held against the bar. A line that does not decide is for information: a better peer decides.
    """

    bar_id: str
    work: str
    unit: Unit
    diskfs: tuple[float, ...]
    peer_name: str
    peer: tuple[float, ...]
    measured: float
    bar: Bar
    decides: bool = True

    @property
    def is_reached(self) -> bool:
        return self.bar.is_reached(self.measured)


def measure_in_turn(
    label: str, pairs: int, unit: Unit, contenders: Mapping[str, Callable[[int], float]], *, is_short: bool = False
) -> Samples:
    """Measure every contender once per pair, A B B A A B ...; each is called with the number of the pair.

    The same program was up to 1.4 times as fast in one place of a pair as in the other: what it finds in memory depends
    on who ran before. So the places change, and unless it is short work, free memory is claimed first.
    """
    samples: Samples = {name: [] for name in contenders}
    for number in range(pairs):
        order = list(contenders.items())
        for name, measure in order if number % 2 == 0 else reversed(order):
            if not is_short:
                caches.claim_free_memory()
            samples[name].append(measure(number))
        reached = ", ".join(f"{name} {unit.text(values[-1])}" for name, values in samples.items())
        print(f"{label}, {number + 1} of {pairs}: {reached}", file=sys.stderr)
    return samples


def median_ratio(numerators: list[float], denominators: list[float]) -> float:
    """Return the median of the ratios of each pair, which a slow moment of the machine does not change."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def compare_speeds(bar_id: str, work: str, unit: Unit, samples: Samples, bar: Bar) -> list[Comparison]:
    """Compare diskfs with every other contender, the more the better; the fastest of them decides."""
    peers = {name: values for name, values in samples.items() if name != DISKFS}
    fastest = max(peers, key=lambda name: statistics.median(peers[name]))
    ours = samples[DISKFS]
    return [
        Comparison(
            bar_id=bar_id,
            work=work,
            unit=unit,
            diskfs=tuple(ours),
            peer_name=name,
            peer=tuple(values),
            measured=median_ratio(ours, values),
            bar=bar,
            decides=name == fastest,
        )
        for name, values in peers.items()
    ]
