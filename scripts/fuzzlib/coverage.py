"""The same executions under atheris, which keeps the changes that reach new code.

atheris is optional: `.venv/bin/pip install atheris`. An input of its own is a number that says which good file it was,
then the bytes of that file's pieces; the changes are those of mutation.py, with the checksums mended.
"""

import hashlib
import importlib
import random
import struct
import sys
from pathlib import Path
from types import ModuleType

from scripts.fuzzlib import mutation
from scripts.fuzzlib.running import Runner, good_specimens
from scripts.fuzzlib.specimen import Draft, Format, Specimen

EXIT_USAGE = 2
MEMORY_MIB = 1024
TIMEOUT = 20
MAX_INPUT = 2 << 20
_NUMBER = struct.Struct("<H")
_SIZE = struct.Struct("<Q")


class FindingError(Exception):
    """Ends atheris with the finding as its reason; it keeps the input."""


def run(form: Format, folder: Path, runs: int | None, seconds: float | None) -> int:
    """Fuzz one format; atheris ends the process itself, so this returns only if it is not installed."""
    try:
        atheris = importlib.import_module("atheris")
    except ModuleNotFoundError:
        print("fuzz: atheris is not installed; install it with: .venv/bin/pip install atheris", file=sys.stderr)
        return EXIT_USAGE
    _instrument(atheris)
    specimens = good_specimens(form, form.specimens())
    runner = Runner(form)
    runner.warm_up(specimens)

    def one_input(data: bytes) -> None:
        if len(data) < _NUMBER.size + _SIZE.size:
            return
        draft, specimen = unpacked(data, specimens)
        outcome = runner.run(draft, specimen)
        if outcome.finding:
            raise FindingError(f"{outcome.finding}\n{outcome.details}")

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if len(data) < _NUMBER.size + _SIZE.size or chance.random() < 0.1:
            specimen = chance.choice(specimens)
            draft = specimen.draft.copy()
        else:
            draft, specimen = unpacked(data, specimens)
        mutation.change(form, draft, specimens, chance)
        return packed(draft, specimens.index(specimen))[:max_size]

    corpus = folder / form.name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, specimen in enumerate(specimens):
        data = packed(specimen.draft, number)
        (corpus / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    limits = [f"-rss_limit_mb={MEMORY_MIB}", f"-timeout={TIMEOUT}", f"-max_len={MAX_INPUT}"]
    limits += [f"-runs={runs}"] if runs else []
    limits += [f"-max_total_time={int(seconds)}"] if seconds else []
    limits.append(f"-artifact_prefix={folder}/{form.name}-")
    atheris.Setup([sys.argv[0], *limits, str(corpus)], one_input, custom_mutator=mutate)
    atheris.Fuzz()
    return 0


def _instrument(atheris: ModuleType) -> None:
    """Make every module of the formats, which are loaded by now, report which branches it takes."""
    for name, module in [*sys.modules.items()]:
        if name.startswith("diskfs_formats."):
            _instrument_functions(atheris, module)


def _instrument_functions(atheris: ModuleType, module: ModuleType) -> None:
    for value in [*vars(module).values()]:
        if getattr(value, "__module__", None) != module.__name__:
            continue
        members = vars(value).values() if isinstance(value, type) else (value,)
        for member in members:
            function = getattr(member, "__func__", member)
            if hasattr(function, "__code__"):
                atheris.instrument_func(function)


def packed(draft: Draft, number: int) -> bytes:
    """Return a draft as one input: which good file it was, its size, its pieces one after the other."""
    return b"".join([_NUMBER.pack(number), _SIZE.pack(draft.size), *(bytes(data) for _, data in draft.pieces)])


def unpacked(data: bytes, specimens: list[Specimen]) -> tuple[Draft, Specimen]:
    """Return the draft that an input is: the pieces lie where those of the good file do."""
    specimen = specimens[_NUMBER.unpack_from(data)[0] % len(specimens)]
    (size,) = _SIZE.unpack_from(data, _NUMBER.size)
    at = _NUMBER.size + _SIZE.size
    if specimen.draft.is_whole:
        return Draft([(0, data[at:])], len(data) - at), specimen
    pieces = []
    for offset, piece in specimen.draft.pieces:
        pieces.append((offset, data[at : at + len(piece)]))
        at += len(piece)
    return Draft(
        [piece for piece in pieces if piece[1]], min(size, specimen.draft.size + mutation.MAX_GROWTH)
    ), specimen
