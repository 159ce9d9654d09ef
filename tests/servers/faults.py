"""Which requests of a server meet a fault."""

import itertools
import random
from collections.abc import Iterator, Sequence


def planned(rate: float, kinds: Sequence[str], seed: int) -> Iterator[str | None]:
    """Yield the fault of each request, None for most: so many of every ten, each kind as often as any other."""
    chance = random.Random(seed)
    turn = itertools.cycle(chance.sample(list(kinds), len(kinds)))
    while True:
        wrong = set(chance.sample(range(10), round(10 * rate)))
        yield from (next(turn) if number in wrong else None for number in range(10))
