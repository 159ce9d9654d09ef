"""What is fetched, how much of it and how often; and the cache that outlives a run. Counted at the server."""

import itertools
import logging
import os
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from diskfs.sources import bodies as bodies_module
from diskfs.sources import cache as cache_module
from diskfs.sources.cache import BlockMemory, CachedSource
from diskfs.sources.locate import open_location
from diskfs.sources.locations import RemoteOptions
from diskfs.sources.remote import Piece, SpareBuffers
from diskfs.sources.remote_source import RemoteSource
from diskfs.sources.stored_cache import StoredCache
from diskfs_formats.source import ByteSource
from tests.helpers import assert_same_bytes
from tests.servers.faulty import FaultyServer

KIB = 1 << 10
MIB = 1 << 20
CONTENT = os.urandom(40 * MIB + 333)


def read_forward(source: ByteSource, end: int, step: int) -> None:
    for offset in range(0, end, step):
        assert_same_bytes(source.read_at(offset, step), CONTENT[offset : offset + step])


def settled(web: FaultyServer) -> int:
    """Return the number of requests once nothing is read ahead any more."""
    count = -1
    while count != len(web.log):
        count = len(web.log)
        time.sleep(0.1)
    return count


def ranges(web: FaultyServer) -> list[tuple[int, int]]:
    return [request.range for request in web.log if request.range and request.range != (0, 0)]


def test_a_read_at_a_place_of_its_own_brings_little(web: FaultyServer) -> None:
    source = open_location(web.put("disk.raw", CONTENT))
    assert source.read_at(20 * MIB + 100, 4096) == CONTENT[20 * MIB + 100 : 20 * MIB + 4196]
    assert ranges(web) == [(20 * MIB, 20 * MIB + 256 * KIB - 1)]


def test_later_reads_at_random_bring_the_megabyte_around(web: FaultyServer) -> None:
    source = open_location(web.put("disk.raw", CONTENT))
    places = [number * 2 * MIB + 700 * KIB for number in range(20)]
    random.Random(1).shuffle(places)
    for place in places:
        source.read_at(place, 4096)
    sizes = [last + 1 - first for first, last in ranges(web)]
    assert sizes == [256 * KIB] * cache_module.OPENING_MISSES + [MIB] * (20 - cache_module.OPENING_MISSES)


@pytest.mark.parametrize("step", [4 * KIB, 128 * KIB, MIB, 4 * MIB])
def test_reading_forward_takes_few_and_large_requests_and_each_byte_once(web: FaultyServer, step: int) -> None:
    source = open_location(web.put("disk.raw", CONTENT))
    read_forward(source, 40 * MIB, step)
    settled(web)
    asked = sorted(ranges(web))
    assert len(asked) <= 11
    assert all(one[1] < other[0] for one, other in itertools.pairwise(asked))
    assert max(last + 1 - first for first, last in asked) <= 9 * MIB


def test_readers_side_by_side_count_as_one_going_forward(web: FaultyServer) -> None:
    source = open_location(web.put("disk.raw", CONTENT))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda offset: source.read_at(offset, MIB), range(0, 40 * MIB, MIB)))
    assert_same_bytes(b"".join(found), CONTENT[: 40 * MIB])
    assert settled(web) <= 16


def test_reading_ahead_ends_with_the_reader(web: FaultyServer) -> None:
    source = open_location(web.put("disk.raw", CONTENT))
    read_forward(source, 2 * MIB, 128 * KIB)
    settled(web)
    assert sum(last + 1 - first for first, last in ranges(web)) <= 2 * MIB * (1 + cache_module.EAGERNESS)


def test_reading_backward_reads_nothing_ahead(web: FaultyServer) -> None:
    source = open_location(web.put("disk.raw", CONTENT))
    for offset in range(3 * MIB, 0, -256 * KIB):
        source.read_at(offset, 4096)
    settled(web)
    assert sum(last + 1 - first for first, last in ranges(web)) <= 4 * MIB


def test_near_ranges_are_one_request_and_far_ones_go_side_by_side(web: FaultyServer) -> None:
    source = open_location(web.put("disk.raw", CONTENT))
    assert isinstance(source, RemoteSource)
    wanted = [(offset * 256 * KIB, 100) for offset in (0, 1, 3, 20, 60)]
    assert source.read_ranges(wanted) == [CONTENT[offset : offset + length] for offset, length in wanted]
    assert sorted(first // (256 * KIB) for first, _ in ranges(web)) == [0, 20, 60]


def test_a_block_is_fetched_once_however_many_wait(web: FaultyServer) -> None:
    source = open_location(web.put("disk.raw", CONTENT))
    web.latency = 0.3
    start = threading.Barrier(24)

    def read(number: int) -> bytes:
        start.wait()
        return source.read_at(10 * MIB + number * 100, 100)

    with ThreadPoolExecutor(24) as pool:
        found = list(pool.map(read, range(24)))
    assert b"".join(found) == CONTENT[10 * MIB : 10 * MIB + 2400]
    assert len(ranges(web)) == 1


def test_a_fetch_that_fails_is_tried_anew_by_the_next_reader(web: FaultyServer) -> None:
    source = open_location(web.put("disk.raw", CONTENT), RemoteOptions(deadline=1))
    web.choose = lambda request: "503"
    with pytest.raises(Exception, match="503"):
        source.read_at(MIB, 10)
    web.choose = lambda request: None
    assert source.read_at(MIB, 10) == CONTENT[MIB : MIB + 10]


def test_memory_is_bounded_and_what_streams_by_drives_out_no_tables() -> None:
    memory = BlockMemory(100)
    memory.put((0, 0), Piece.of(b"t" * 10), streamed=False)
    for number in range(1, 50):
        memory.put((0, number), Piece.of(b"s" * 10), streamed=True)
    table = memory.get((0, 0))
    assert table is not None
    assert table.view == b"t" * 10
    assert [number for number in range(1, 50) if (0, number) in memory] == [45, 46, 47, 48, 49]
    for number in range(50, 99):
        memory.put((0, number), Piece.of(b"t" * 10), streamed=False)
    assert (0, 0) not in memory
    assert sum((0, number) in memory for number in range(99)) == 10
    memory.forget(0)
    assert not any((0, number) in memory for number in range(99))


def test_what_is_kept_of_a_place_of_its_own_keeps_no_neighbours() -> None:
    memory = BlockMemory(100)
    shared = memoryview(bytes(range(40)))
    memory.put((0, 0), Piece(shared, 10, 20), streamed=False)
    kept = memory.get((0, 0))
    assert kept is not None
    assert (bytes(kept.view), len(kept.buffer)) == (bytes(range(10, 20)), 10)


def test_a_range_of_one_buffer_is_handed_out_without_a_copy(web: FaultyServer) -> None:
    source = open_location(web.put("disk.raw", CONTENT))
    assert isinstance(source, RemoteSource)
    read_forward(source, 8 * MIB, MIB)
    settled(web)
    for offset, length in ((MIB, MIB), (MIB + 700 * KIB, 10 * KIB), (MIB + 1, MIB - 1)):
        ready = source.read_if_ready(offset, length)
        assert isinstance(ready, memoryview)
        assert ready.readonly
        assert ready == CONTENT[offset : offset + length]
    across = source.read_if_ready(MIB + 1, MIB)
    assert across == CONTENT[MIB + 1 : 2 * MIB + 1]


def test_a_body_is_read_where_it_is_kept(web: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the last byte: a library that hides its buffered file would be slower, and nothing else would tell."""
    copied: list[int] = []
    read_body = bodies_module.read_body

    def counting(response: object, length: int) -> bytes:
        data = read_body(response, length)
        copied.append(len(data))
        return data

    source = open_location(web.put("disk.raw", CONTENT))
    monkeypatch.setattr(bodies_module, "read_body", counting)
    assert_same_bytes(source.read_at(0, 20 * MIB), CONTENT[: 20 * MIB])
    settled(web)
    assert sum(copied) == len(ranges(web))


def test_a_buffer_is_used_again_when_nobody_looks_at_it() -> None:
    spare = SpareBuffers(2)
    first = spare.take()
    part = first[10:20]
    part[:] = b"0123456789"
    first.release()
    second = spare.take()
    assert second.obj is not part.obj
    kept = second.obj
    second.release()
    assert spare.take().obj is kept
    assert bytes(part) == b"0123456789"


def test_any_pattern_gives_the_right_bytes(web: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """With so little memory that blocks are dropped while they are being used."""
    monkeypatch.setattr(cache_module._SHARED, "memory", BlockMemory(2 * MIB))
    source = open_location(web.put("disk.raw", CONTENT))

    def work(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(60):
            offset, length = chance.randrange(len(CONTENT)), chance.choice([1, 4096, 300 * KIB, 3 * MIB])
            length = min(length, len(CONTENT) - offset)
            for _ in range(chance.choice([1, 1, 4])):
                if offset + length <= len(CONTENT):
                    assert_same_bytes(source.read_at(offset, length), CONTENT[offset : offset + length])
                    ready = source.read_if_ready(offset, length)
                    assert ready is None or bytes(ready) == CONTENT[offset : offset + length]
                offset += length

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))


# The folder of --cache


def options(folder: Path, **more: int) -> RemoteOptions:
    return RemoteOptions(cache_folder=folder, **more)  # type: ignore[arg-type]  # sizes only


def test_a_second_run_makes_no_request_for_data(web: FaultyServer, tmp_path: Path) -> None:
    url = web.put("disk.raw", CONTENT)
    source = open_location(url, options(tmp_path / "cache"))
    read_forward(source, 40 * MIB, MIB)
    settled(web)
    source.close()
    web.log.clear()
    again = open_location(url, options(tmp_path / "cache"))
    read_forward(again, 40 * MIB, MIB)
    settled(web)
    assert [request.range for request in web.log] == [(0, 0)]


def test_another_version_is_another_entry(web: FaultyServer, tmp_path: Path) -> None:
    url = web.put("disk.raw", CONTENT)
    open_location(url, options(tmp_path)).read_at(MIB, 100)
    web.put("disk.raw", CONTENT[::-1])
    assert open_location(url, options(tmp_path)).read_at(MIB, 100) == CONTENT[::-1][MIB : MIB + 100]


def test_names_in_the_folder_are_digests(web: FaultyServer, tmp_path: Path) -> None:
    open_location(web.put("CANARY.raw", CONTENT) + "?CANARY=CANARY", options(tmp_path)).read_at(MIB, 100)
    names = [path.name for path in tmp_path.rglob("*")]
    assert len(names) >= 3
    assert not any("CANARY" in name for name in names)
    assert not any(b"CANARY" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.rglob("*"))


@pytest.mark.parametrize("place", [0, 7, 8, 39, 40, 47, 48, 51, 52, 55, 56, 57, 5000, -1])
def test_a_flipped_bit_anywhere_is_noticed_and_fetched_anew(web: FaultyServer, tmp_path: Path, place: int) -> None:
    url = web.put("disk.raw", CONTENT)
    open_location(url, options(tmp_path)).read_at(MIB, 100)
    (path,) = (path for path in tmp_path.glob("??/*") if path.is_file())
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    web.log.clear()
    again = open_location(url, options(tmp_path))
    assert again.read_at(MIB, 256 * KIB) == CONTENT[MIB : MIB + 256 * KIB]
    assert len(web.log) == 2
    assert path.read_bytes() != bytes(data)


@pytest.mark.parametrize("size", [0, 1, 56, 57, 200000, -1])
def test_a_file_of_the_wrong_length_is_fetched_anew(web: FaultyServer, tmp_path: Path, size: int) -> None:
    url = web.put("disk.raw", CONTENT)
    open_location(url, options(tmp_path)).read_at(MIB, 100)
    (path,) = (path for path in tmp_path.glob("??/*") if path.is_file())
    if size < 0:
        path.write_bytes(path.read_bytes() + b"x")
    else:
        os.truncate(path, size)
    assert open_location(url, options(tmp_path)).read_at(MIB, 256 * KIB) == CONTENT[MIB : MIB + 256 * KIB]


def test_files_that_changed_their_names_are_not_believed(tmp_path: Path) -> None:
    cache = StoredCache(tmp_path, 1 << 30)
    key, other = "ab" * 32, "abcd" * 16
    cache.store(key, 3, b"x" * 1000)
    assert cache.load(key, 3, 1000) == b"x" * 1000
    path = tmp_path / "ab" / f"{key}-3"
    (tmp_path / "ab" / f"{other}-3").write_bytes(path.read_bytes())
    (tmp_path / "ab" / f"{key}-4").write_bytes(path.read_bytes())
    assert cache.load(other, 3, 1000) is None
    assert cache.load(key, 4, 1000) is None
    assert cache.load(key, 3, 999) is None


def test_the_folder_keeps_to_its_size_and_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    limit = 4 * MIB
    cache = StoredCache(tmp_path, limit)
    key = "cd" * 32
    kept = b"k" * 64 * KIB
    cache.store(key, 0, kept)
    for number in range(1, 200):
        cache.store(key, number, b"x" * 64 * KIB)
        # As if each had been used a second after the one before, and the first all the time.
        os.utime(tmp_path / "cd" / f"{key}-{number:x}", (number, number))
        os.utime(tmp_path / "cd" / f"{key}-0", (number + 1, number + 1))
        assert sum(path.stat().st_size for path in (tmp_path / "cd").iterdir()) <= limit
    assert cache.load(key, 0, len(kept)) == kept
    there = [number for number in range(1, 200) if cache.load(key, number, 64 * KIB)]
    assert there == list(range(there[0], 200))


def test_two_processes_share_the_folder(web: FaultyServer, tmp_path: Path) -> None:
    url = web.put("disk.raw", CONTENT)
    script = (
        "import sys, hashlib; from pathlib import Path; from diskfs.sources.locate import open_location;"
        "from diskfs.sources.locations import RemoteOptions;"
        "s = open_location(sys.argv[1], RemoteOptions(cache_folder=Path(sys.argv[2]), cache_size=8 << 20));"
        "d = hashlib.sha256();"
        "[d.update(s.read_at(o, min(1 << 20, s.size - o))) for o in range(0, s.size, 1 << 20)];"
        "print(d.hexdigest())"
    )
    command = [sys.executable, "-c", script, url, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    import hashlib

    expected = hashlib.sha256(CONTENT).hexdigest()
    for _ in range(2):
        started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(3)]
        for process in started:
            output, _ = process.communicate(timeout=60)
            assert output.strip() == expected
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) <= 9 * MIB


def test_killed_writers_leave_a_cache_that_can_be_used(web: FaultyServer, tmp_path: Path) -> None:
    url = web.put("disk.raw", CONTENT)
    script = (
        "import sys; from pathlib import Path; from diskfs.sources.locate import open_location;"
        "from diskfs.sources.locations import RemoteOptions;"
        "s = open_location(sys.argv[1], RemoteOptions(cache_folder=Path(sys.argv[2])));"
        "print('open', flush=True);"
        "[s.read_at(o, 1 << 20) for o in range(0, s.size - (1 << 20), 1 << 20)]"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for number in range(8):
        command = [sys.executable, "-c", script, url, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.02 * number)
            process.kill()
        read_forward(open_location(url, options(tmp_path)), 4 * MIB, MIB)


def test_a_full_disk_ends_the_use_of_the_cache_and_no_read(
    web: FaultyServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = open_location(web.put("disk.raw", CONTENT), options(tmp_path))
    for folder in range(256):
        # No folder can be made where a file is, not even by root.
        (tmp_path / f"{folder:02x}").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        read_forward(source, 3 * MIB, MIB)
    assert len([record for record in caplog.records if "nothing more is kept" in record.message]) == 1


def test_every_reader_of_a_source_may_be_a_thread_of_its_own(web: FaultyServer) -> None:
    source = open_location(web.put("disk.raw", CONTENT))
    assert isinstance(source, RemoteSource)
    assert isinstance(source._content, CachedSource)
    with ThreadPoolExecutor(8) as pool:
        places = [(number * 5077777) % (len(CONTENT) - 5000) for number in range(400)]
        for place, data in zip(places, pool.map(lambda place: source.read_at(place, 5000), places), strict=True):
            assert data == CONTENT[place : place + 5000]
