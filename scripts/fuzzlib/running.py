"""One execution: open, map, read at 16 places, verify; and the bounds that each of them has to keep.

Only ImageError may come out of diskfs here. Nothing else is caught: what escapes is a finding, and so is a promise of
the map or of reading that is not kept, a message that does not fit one line, or a bound that is passed.
"""

import ctypes
import gc
import itertools
import os
import random
import time
import traceback
import weakref
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from diskfs.sources.locate import require_bare_name
from diskfs_formats import registry
from diskfs_formats.driver import DiskImage, Match, ProbeWindow, RelatedFiles
from diskfs_formats.errors import CorruptImage, ImageError, OutOfRange, ParentUnavailable, UnsupportedFeature
from diskfs_formats.extents import ExtentKind
from diskfs_formats.gzipped import GzipSource, is_gzip
from diskfs_formats.ova import open_ova
from diskfs_formats.partitions import read_partition_table
from diskfs_formats.reading import ENGINE, UnitCache
from diskfs_formats.source import Buffer, ByteSource, MemorySource
from diskfs_formats.tar import is_tar
from scripts.fuzzlib.specimen import Draft, Format, Specimen
from tests.hostile.opening_child import Watch
from tests.samples.vhdx_builder import SparseSource

MAX_SECONDS = 2.0
"""Of processor time, for one execution."""
MAX_GROWTH = 64 << 20
"""Bytes of memory over what the process has after reading every good file once, besides the cache."""
CACHE_SIZE = 8 << 20
OPENED_NAME = "disk.vmdk"
"""The file that is opened where the one that is changed lies beside it."""
MAX_REQUESTS = 16
MAX_REQUESTED = 4 << 20
"""Of the source, while an image is opened."""
MAX_MESSAGE = 1200
MAX_CHAIN = 16
MAX_EXTENTS = 1000
MAX_FINDINGS = 300
READS = 16
READ_SIZE = 8192


_MALLOC_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", lambda _kept: 0)
"""malloc_trim(3): hands back free memory, where the C library has it."""


class BrokenPromise(Exception):
    """Something that diskfs says of itself is not so."""


@dataclass
class Outcome:
    """What one execution gave."""

    passed_header: bool = False
    """Whether the headers were accepted, so that the execution reached what lies behind them."""
    error: str = ""
    """Class of the error that opening gave."""
    seconds: float = 0.0
    growth: int = 0
    finding: str = ""
    """What went wrong, with where; empty if nothing did."""
    details: str = ""
    messages: list[str] = field(default_factory=list)


class Beside:
    """The files beside an image, held in memory: RelatedFiles with the rules of a folder."""

    def __init__(self, files: Mapping[str, bytes | SparseSource], child: str, depth: int = 1) -> None:
        self._files = files
        self._child = child
        self._depth = depth

    def open(self, file_name: str, /) -> ByteSource:
        require_bare_name(file_name)
        if file_name not in self._files:
            raise ParentUnavailable(f"{self._child}: the file {ascii(file_name)[:80]} is not here")
        found = self._files[file_name]
        return MemorySource(found, file_name) if isinstance(found, bytes) else found

    def open_parent(self, file_names: Sequence[str], format_name: str | None, /) -> DiskImage:
        for name in file_names:
            require_bare_name(name)
        # A child that names no file needs one that the user names for it.
        for name in file_names or self._files:
            if name in self._files:
                if self._depth >= MAX_CHAIN:
                    raise CorruptImage(f"{name}: the chain is over {MAX_CHAIN} files long")
                related = Beside(self._files, name, self._depth + 1)
                source = self.open(name)
                try:
                    return registry.open_image(source, related, format_name=format_name)
                except UnsupportedFeature as error:
                    raise UnsupportedFeature(f"{self._child}: its parent {name}: {error}") from error
        raise ParentUnavailable(f"{self._child}: no parent is here")


def good_specimens(form: Format, specimens: Iterable[Specimen]) -> list[Specimen]:
    """Return the specimens that open: of an image that needs a file which is not there, nothing would be seen.

    Raises BrokenPromise if one of them is a finding as it is.
    """
    runner = Runner(form)
    good = []
    for specimen in specimens:
        outcome = runner.run(specimen.draft, specimen)
        if outcome.finding:
            raise BrokenPromise(f"{form.name}: {specimen.name}: {outcome.finding}\n{outcome.details}")
        if outcome.passed_header:
            good.append(specimen)
    return good


class Runner:
    """Executes inputs of one format, one after the other, and measures each."""

    def __init__(self, form: Format, watch: Watch | None = None) -> None:
        self._form = form
        self._watch = watch
        self._baseline = 0
        self._memory: PeakMemory | None = None
        ENGINE.cache = UnitCache(CACHE_SIZE)

    def warm_up(self, specimens: Sequence[Specimen]) -> None:
        """Execute the good files: what is imported or grown once is not held against any of those that follow."""
        watch, self._watch = self._watch, None
        for specimen in specimens:
            self.run(specimen.draft, specimen)
        self._watch = watch
        # What is there now stays: the collector need not look through it again after every few executions.
        gc.collect()
        gc.freeze()
        self._memory = PeakMemory()
        self._memory.restart()
        self._baseline = self._memory.read()

    def run(self, draft: Draft, specimen: Specimen) -> Outcome:
        """Execute what `specimen` has become. Whatever escapes from diskfs is recorded as a finding."""
        outcome = Outcome()
        beside: dict[str, bytes | SparseSource] = {**specimen.beside}
        source = changed = draft.source(self._form.file_name)
        if specimen.opened:
            beside[self._form.file_name] = changed
            source = SparseSource({0: specimen.opened}, len(specimen.opened), OPENED_NAME)
        if self._watch is not None:
            self._watch.opened, self._watch.on = [], True
        began = time.process_time()
        try:
            execute(self._form, source, beside, outcome)
        except Exception as error:  # noqa: BLE001 - recorded, and fails the campaign
            outcome.finding = _where(error)
            outcome.details = traceback.format_exc()
        outcome.seconds = time.process_time() - began
        for each in {source, changed}:
            ENGINE.cache.forget(each)
        if self._watch is not None:
            self._watch.on = False
            if self._watch.opened and not outcome.finding:
                outcome.finding = f"opened {self._watch.opened[0]}"
        if self._memory is not None:
            outcome.growth = self._memory.read() - self._baseline
            if outcome.growth > CACHE_SIZE:
                # What the C library keeps of this run, in an arena for each thread, is not the next one's.
                _MALLOC_TRIM(0)
            if outcome.growth > 0:
                self._memory.restart()
        if not outcome.finding and self._memory is not None:
            if outcome.seconds > MAX_SECONDS:
                outcome.finding = f"slow: over {MAX_SECONDS:.0f} s"
                outcome.details = f"{outcome.seconds:.2f} s of processor time"
            elif outcome.growth > MAX_GROWTH + CACHE_SIZE:
                outcome.finding = f"memory: over {MAX_GROWTH + CACHE_SIZE >> 20} MiB"
                outcome.details = f"{outcome.growth >> 20} MiB more than at the start"
        return outcome


def execute(form: Format, source: SparseSource, beside: Mapping[str, bytes | SparseSource], outcome: Outcome) -> None:
    """Do everything that can be done with one input; raises whatever is not an ImageError."""
    if form.driver is not None:
        _run_image(form, source, Beside(beside, source.name), outcome)
    elif form.name == "ova":
        _run_appliance(source, outcome)
    elif form.name == "gzip":
        _run_gzip(source, outcome)
    else:
        _run_partitions(source, outcome)
    for message in outcome.messages:
        _require(message.isprintable(), f"a message that is not one printable line: {message!r}")
        _require(len(message) <= MAX_MESSAGE, f"a message of {len(message)} characters: {message[:200]}")


def _run_image(form: Format, source: SparseSource, related: RelatedFiles, outcome: Outcome) -> None:
    assert form.driver is not None
    driver = registry.driver_named(form.driver)
    window = ProbeWindow.of(source)
    _require(isinstance(driver.probe(window), Match), "a probe that does not say how sure it is")
    try:
        registry.detect(window, source.name)
    except ImageError as error:
        outcome.messages.append(str(error))
    source.requests = source.bytes_read = 0
    try:
        image = driver.open(source, related)
    except ImageError as error:
        _keep(error, source, outcome)
        return
    finally:
        _require(source.requests <= MAX_REQUESTS, f"opening takes {source.requests} requests")
        _require(source.bytes_read <= MAX_REQUESTED + form.more_read, f"opening reads {source.bytes_read} bytes")
    outcome.passed_header = True
    outcome.messages += [finding.message for finding in image.info.findings]
    _use(image, outcome)
    findings = itertools.islice(driver.check(source, related), MAX_FINDINGS)
    try:
        outcome.messages += [finding.message for finding in findings]
    except ImageError as error:
        _keep(error, source, outcome)
    image.close()


def _run_appliance(source: SparseSource, outcome: Outcome) -> None:
    is_tar(source.read_at(0, min(512, source.size)))
    try:
        appliance = open_ova(source)
    except ImageError as error:
        _keep(error, source, outcome)
        return
    outcome.passed_header = True
    outcome.messages += [finding.message for finding in appliance.findings]
    for disk in appliance.disks[:4]:
        outcome.messages += [finding.message for finding in disk.findings]
        try:
            stored = disk.open()
            image = registry.open_image(stored)
        except ImageError as error:
            outcome.messages.append(str(error))
            continue
        _use(image, outcome)
        image.close()
    outcome.messages += [finding.message for finding in itertools.islice(appliance.verify(), MAX_FINDINGS)]
    appliance.close()


def _run_gzip(source: SparseSource, outcome: Outcome) -> None:
    zipped = GzipSource(source, source.name)
    is_ours = is_gzip(source.read_at(0, min(4, source.size)))
    try:
        size = zipped.size
    except ImageError as error:
        _keep(error, source, outcome)
        outcome.passed_header = is_ours and "gzip header at offset 0x0" not in str(error)
        return
    outcome.passed_header = True
    for offset in _offsets(size, 1 << 18, random.Random(size)):
        _read(zipped, offset, min(READ_SIZE, size - offset), outcome)
    zipped.close()


def _run_partitions(source: SparseSource, outcome: Outcome) -> None:
    for sector_size in (None, 512, 4096):
        table = read_partition_table(source, sector_size=sector_size)
        if table is None:
            continue
        outcome.passed_header = True
        outcome.messages += [finding.message for finding in table.findings]
        for partition in table.partitions:
            _require(partition.offset >= 0 and partition.size >= 0, f"a partition at {partition.offset}")
            outcome.messages.append(str(partition))
    source.requests = source.bytes_read = 0
    image = registry.open_image(source, format_name="raw")
    _use(image, outcome)


def _keep(error: ImageError, source: ByteSource, outcome: Outcome) -> None:
    outcome.error = type(error).__name__
    outcome.messages.append(str(error))
    stem = source.name.partition(".")[0]
    _require(stem in str(error), f"a message that does not name the file: {error}")


def _use(image: DiskImage, outcome: Outcome) -> None:
    """Map a disk and read it at its edges and anywhere else; compare what the two say."""
    _require(0 <= image.size < 1 << 63, f"a disk of {image.size} bytes")
    kinds = list(_mapped(image, outcome))
    chance = random.Random(image.size ^ zlib.crc32(image.name.encode()))
    for offset in _offsets(image.size, image.info.unit_size or 4096, chance):
        length = min(chance.choice((1, 512, READ_SIZE)), image.size - offset)
        found = _read(image, offset, length, outcome)
        if found is None:
            continue
        # What the map says is empty must read so, and no byte of another place comes out.
        for start, end, kind in kinds:
            if kind is not ExtentKind.DATA and start < offset + length and offset < end:
                part = bytes(found[max(start, offset) - offset : min(end, offset + length) - offset])
                _require(not any(part), f"a {kind.value} at {start:#x} that does not read as zero")
    try:
        image.read_at(image.size, 1)
    except OutOfRange:
        return
    raise BrokenPromise("a read past the end gives bytes")


def _mapped(image: DiskImage, outcome: Outcome) -> Iterator[tuple[int, int, ExtentKind]]:
    end = count = 0
    try:
        for extent in itertools.islice(image.extents(), MAX_EXTENTS):
            _require(extent.offset == end and extent.length > 0, f"an extent at {extent.offset:#x}, expected {end:#x}")
            stored = extent.stored
            _require((extent.kind is ExtentKind.DATA) == (stored is not None), "an extent of no kind")
            if stored is not None:
                inside = stored.offset >= 0 and stored.offset + stored.length <= stored.source.size
                _require(inside, f"an extent stored at {stored.offset:#x} with {stored.length} bytes, past the end")
                _require(stored.decode is not None or stored.length == extent.length, "an extent of two lengths")
            end = extent.end
            count += 1
            yield extent.offset, extent.end, extent.kind
    except ImageError as error:
        outcome.messages.append(str(error))
        return
    _require(count == MAX_EXTENTS or end == image.size, f"a map that ends at {end:#x} of {image.size:#x}")


def _read(source: ByteSource, offset: int, length: int, outcome: Outcome) -> Buffer | None:
    """Read both ways, the ready one first; return the bytes, or None if they cannot be read."""
    ready = getattr(source, "read_if_ready", None)
    early = late = None
    try:
        early = ready(offset, length) if ready is not None else None
    except ImageError as error:
        outcome.messages.append(str(error))
    try:
        late = source.read_at(offset, length)
    except ImageError as error:
        outcome.messages.append(str(error))
        _require(early is None, "bytes that are ready and cannot be read")
        return None
    _require(len(late) == length, f"{len(late)} bytes for {length}")
    _require(early is None or bytes(early) == late, f"bytes at {offset:#x} that differ when they are ready")
    return late


def _offsets(size: int, unit: int, chance: random.Random) -> list[int]:
    """Return 16 places of a disk: its ends, both sides of a unit's edge, and any."""
    if not size:
        return []
    edge = chance.randrange(-(-size // unit)) * unit
    chosen = [0, size - 1, max(size - READ_SIZE, 0), size // 2, unit - 1, unit, edge - 1, edge]
    chosen += [chance.randrange(size) for _ in range(READS - len(chosen))]
    return [min(max(offset, 0), size - 1) for offset in chosen]


def _require(is_so: bool, otherwise: str) -> None:
    if not is_so:
        raise BrokenPromise(otherwise)


def _where(error: BaseException) -> str:
    """Name a finding by its error and the line of diskfs that it came from, so that equal ones are told as one."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [
        frame for frame in frames if "diskfs" in Path(frame.filename).parts[-2] or "diskfs_formats" in frame.filename
    ]
    frame = (ours or frames)[-1]
    text = f": {str(error)[:60]}" if isinstance(error, BrokenPromise) else ""
    text = "".join(character for character in text if not character.isdigit())
    return f"{type(error).__name__} in {Path(frame.filename).name}:{frame.lineno}{text}"


class PeakMemory:
    """The kernel's high-water mark of this process, which can be begun anew; that of getrusage has its parent's in it.

    The files stay open, because opening them takes longer than many an execution. Not to be used after a fork.
    """

    def __init__(self) -> None:
        self._status = os.open("/proc/self/status", os.O_RDONLY)
        self._restart = os.open("/proc/self/clear_refs", os.O_WRONLY)
        for number in (self._status, self._restart):
            weakref.finalize(self, os.close, number)

    def read(self) -> int:
        """Return the mark in bytes."""
        status = os.pread(self._status, 4096, 0)
        at = status.index(b"VmHWM:") + len(b"VmHWM:")
        return int(status[at : status.index(b"kB", at)]) << 10

    def restart(self) -> None:
        """Begin anew from what the process has now."""
        os.write(self._restart, b"5")
