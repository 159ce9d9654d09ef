"""Reading ahead: when it begins, what it asks for, and that an error stays in its place."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from diskfs.fuse.readahead import AHEAD, MAX_STREAMS, MIN_LENGTH, Readahead
from diskfs_formats.driver import ImageInfo
from diskfs_formats.errors import CorruptImage
from diskfs_formats.source import MemorySource

SIZE = 40 * MIN_LENGTH


class Disk(MemorySource):
    """A disk of which each byte tells the request-sized piece it lies in; some pieces are damaged."""

    def __init__(self, *, compressed: bool = True, damaged: frozenset[int] = frozenset()) -> None:
        super().__init__(b"".join(bytes([number]) * MIN_LENGTH for number in range(SIZE // MIN_LENGTH)), "disk")
        self.info = ImageInfo("vmdk", "streamOptimized", SIZE, compressed=compressed)
        self._damaged = damaged

    def read_at(self, offset: int, length: int, /) -> bytes:
        if offset // MIN_LENGTH in self._damaged:
            raise CorruptImage(f"piece {offset // MIN_LENGTH}")
        return super().read_at(offset, length)


class Submitted:
    """Runs what is submitted only when it is asked for, as a pool that is slow would."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self._work: dict[int, Callable[[], None]] = {}

    def __call__(self, work: Callable[[int, int], bytes], offset: int, length: int) -> "Future[bytes]":
        self.asked.append((offset, length))
        future: Future[bytes] = Future()

        def run() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work(offset, length))
                except CorruptImage as error:
                    future.set_exception(error)

        self._work[id(future)] = run
        return future

    def bytes_of(self, future: "Future[bytes] | None") -> bytes:
        assert future is not None
        if not future.done():
            self._work[id(future)]()
        return future.result()


def stream(readahead: Readahead, disk: Disk, first: int, count: int) -> list["Future[bytes] | None"]:
    return [readahead.next(disk, number * MIN_LENGTH, MIN_LENGTH) for number in range(first, first + count)]


def piece(number: int) -> bytes:
    return bytes([number]) * MIN_LENGTH


def test_nothing_is_read_ahead_before_three_requests_in_a_row() -> None:
    submitted = Submitted()
    readahead, disk = Readahead(submitted), Disk()
    for first in (0, 5, 9):
        assert stream(readahead, disk, first, 2) == [None, None]
    assert submitted.asked == []


def test_a_stream_is_read_ahead_once_and_gives_the_bytes_in_order() -> None:
    submitted = Submitted()
    readahead, disk = Readahead(submitted), Disk()
    futures = stream(readahead, disk, 0, 40)
    assert futures[:2] == [None, None]
    assert [submitted.bytes_of(future) for future in futures[2:]] == [piece(number) for number in range(2, 40)]
    assert submitted.asked == [(number * MIN_LENGTH, MIN_LENGTH) for number in range(2, 40)]


def test_it_goes_further_ahead_the_longer_a_stream_lasts_up_to_a_bound() -> None:
    submitted = Submitted()
    readahead, disk = Readahead(submitted), Disk()
    furthest = []
    for number in range(3, 10):
        stream(readahead, disk, number, 1)
        furthest.append(max((offset for offset, _ in submitted.asked), default=0) // MIN_LENGTH - number)
    assert furthest[2:] == [2, 3, AHEAD, AHEAD, AHEAD]


def test_the_last_piece_ends_with_the_disk() -> None:
    submitted = Submitted()
    readahead, disk = Readahead(submitted), Disk()
    size = 3 * MIN_LENGTH
    requests = [(offset, min(size, SIZE - offset)) for offset in range(0, SIZE, size)]
    futures = [readahead.next(disk, offset, length) for offset, length in requests]
    assert SIZE % size
    assert submitted.asked == requests[2:]
    assert len(submitted.bytes_of(futures[-1])) == SIZE % size


@pytest.mark.parametrize("other", [2 * MIN_LENGTH, 3 * MIN_LENGTH])
def test_requests_that_grow_are_followed_from_their_third_on(other: int) -> None:
    submitted = Submitted()
    readahead, disk = Readahead(submitted), Disk()
    stream(readahead, disk, 0, 6)
    before, offset = len(submitted.asked), 6 * MIN_LENGTH
    answers = []
    for _ in range(4):
        answers.append((offset, readahead.next(disk, offset, other)))
        offset += other
    assert [future is None for _, future in answers] == [True, True, False, False]
    for start, future in answers[2:]:
        assert submitted.bytes_of(future) == disk.read_at(start, other)
    assert submitted.asked[before] == (6 * MIN_LENGTH + 2 * other, other)


def test_a_last_request_longer_than_the_others_is_not_answered_by_a_piece_of_their_size() -> None:
    submitted = Submitted()
    readahead, disk = Readahead(submitted), Disk()
    stream(readahead, disk, 30, 8)
    assert readahead.next(disk, 38 * MIN_LENGTH, 2 * MIN_LENGTH) is None


def test_requests_of_changing_sizes_are_never_read_twice() -> None:
    submitted = Submitted()
    readahead, disk = Readahead(submitted), Disk()
    offset = 0
    for number in range(12):
        length = (1 + number % 2) * MIN_LENGTH
        assert readahead.next(disk, offset, length) is None
        offset += length
    assert submitted.asked == []


def test_where_two_streams_meet_one_is_given_up() -> None:
    submitted = Submitted()
    readahead, disk = Readahead(submitted), Disk()
    stream(readahead, disk, 0, 6)
    # A newcomer that ends where the other one goes on takes neither its place nor its pieces.
    assert readahead.next(disk, 5 * MIN_LENGTH, MIN_LENGTH) is None
    assert len(readahead._streams) == 1
    assert submitted.bytes_of(stream(readahead, disk, 6, 1)[0]) == piece(6)
    assert len(submitted.asked) == len(set(submitted.asked))


def test_when_no_thread_can_be_started_reads_go_the_usual_way() -> None:
    def refuse(_work: Callable[[int, int], bytes], _offset: int, _length: int) -> "Future[bytes]":
        raise RuntimeError("can't start new thread")

    assert stream(Readahead(refuse), Disk(), 0, 6) == [None] * 6


def test_small_requests_and_plain_disks_are_left_alone() -> None:
    submitted = Submitted()
    readahead = Readahead(submitted)
    disk, plain = Disk(), Disk(compressed=False)
    for number in range(4):
        assert readahead.next(disk, number * 4096, 4096) is None
        assert readahead.next(plain, number * MIN_LENGTH, MIN_LENGTH) is None
        assert readahead.next(MemorySource(bytes(SIZE)), number * MIN_LENGTH, MIN_LENGTH) is None
    assert submitted.asked == []


def test_an_error_reaches_the_request_that_needs_the_piece_and_no_other() -> None:
    submitted = Submitted()
    readahead, disk = Readahead(submitted), Disk(damaged=frozenset({4}))
    futures = stream(readahead, disk, 0, 8)
    for number in (2, 3, 5, 6, 7):
        assert submitted.bytes_of(futures[number]) == piece(number)
    with pytest.raises(CorruptImage, match="piece 4"):
        submitted.bytes_of(futures[4])


def test_what_streams_hold_is_bounded() -> None:
    submitted = Submitted()
    readahead = Readahead(submitted)
    disks = [Disk() for _ in range(MAX_STREAMS + 3)]
    for disk in disks:
        stream(readahead, disk, 0, 5)
    assert len(readahead._streams) == MAX_STREAMS
    held = sum(len(one.pieces) for one in readahead._streams.values())
    assert held == MAX_STREAMS * AHEAD
    # One that was dropped begins anew and still reads right.
    assert submitted.bytes_of(stream(readahead, disks[0], 5, 3)[2]) == piece(7)


def test_two_readers_of_one_disk_are_two_streams() -> None:
    submitted = Submitted()
    readahead, disk = Readahead(submitted), Disk()
    for step in range(5):
        one = readahead.next(disk, step * MIN_LENGTH, MIN_LENGTH)
        two = readahead.next(disk, (20 + step) * MIN_LENGTH, MIN_LENGTH)
        if step > 1:
            assert (submitted.bytes_of(one), submitted.bytes_of(two)) == (piece(step), piece(20 + step))


def test_closing_waits_for_what_has_begun_and_drops_the_rest() -> None:
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    class Slow(Disk):
        def read_at(self, offset: int, length: int, /) -> bytes:
            begun.set()
            assert go_on.wait(30)
            ended.set()
            return super().read_at(offset, length)

    disk = Slow()
    with ThreadPoolExecutor(1) as pool:
        readahead = Readahead(pool.submit)
        futures = stream(readahead, disk, 0, 3)
        assert begun.wait(30)
        closing = threading.Thread(target=readahead.close)
        closing.start()
        assert not ended.is_set()
        go_on.set()
        closing.join(30)
        assert not closing.is_alive()
        assert ended.is_set()
        assert futures[2] is not None
        assert futures[2].done()
