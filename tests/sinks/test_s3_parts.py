"""How an object is cut into parts, and what they take."""

import io
import os
import threading
import time

import pytest

from diskfs.errors import SinkError
from diskfs.sinks.s3_parts import IN_MEMORY, MAX_PARTS, Part, PartBody, PartSizes, Place
from diskfs.sinks.s3_sending import MAX_MEMORY, MAX_THREADS, PartSender

MIB = 1 << 20
TIB = 1 << 40
SMALLEST_OF_S3, LARGEST_OF_S3, PARTS_OF_S3 = 5 * MIB, 5 << 30, 10_000
"""Amazon S3 User Guide, "Amazon S3 multipart upload limits"."""


@pytest.mark.parametrize("size", [0, 1, 8 * MIB, 8 * MIB + 1, 80_000 * MIB, 80_000 * MIB + 1, 5 * TIB, 16 * TIB])
@pytest.mark.parametrize("exact", [True, False])
def test_an_object_of_a_known_size_fits_into_the_parts_that_s3_takes(size: int, exact: bool) -> None:
    sizes = PartSizes(size, exact=exact)
    last = sizes.at(max(size - 1, 0))
    assert last.number < PARTS_OF_S3
    assert SMALLEST_OF_S3 <= last.size <= LARGEST_OF_S3
    if exact:
        assert last.size == max(8 * MIB, -(-size // PARTS_OF_S3 // MIB) * MIB)


def test_parts_of_an_unknown_size_grow_and_hold_16_tib() -> None:
    sizes = PartSizes()
    assert sizes.at(16 * TIB - 1).number < PARTS_OF_S3
    place = sizes.at(0)
    end = 0
    while place.number < MAX_PARTS - 1:
        assert place.offset == end
        assert sizes.at(place.offset + place.size - 1) == place
        end = place.offset + place.size
        following = sizes.at(end)
        assert following.number == place.number + 1
        assert place.size <= following.size <= 2 * place.size
        assert SMALLEST_OF_S3 <= following.size <= LARGEST_OF_S3
        place = following
    with pytest.raises(OverflowError):
        sizes.at(place.offset + place.size)


def test_a_bound_that_allows_it_keeps_parts_small() -> None:
    assert PartSizes(100 << 30).at((100 << 30) - 1).size < 16 * MIB


@pytest.mark.parametrize("size", [9, IN_MEMORY, IN_MEMORY + 1])
def test_the_checksum_is_crc_32c_wherever_the_part_is_kept(size: int) -> None:
    part = Part(Place(0, 0, size), "target")
    part.write(4, b"56789")
    part.write(0, b"1234")
    part.end_at(9)
    # The check value of CRC-32C in the catalogue of parametrised CRC algorithms (CRC-32/ISCSI).
    assert part.checksum().hex() == "e3069283"
    assert part.is_spooled == (size > IN_MEMORY)
    part.drop()


def test_zeroes_take_no_memory_and_have_the_checksum_of_zeroes() -> None:
    zeroes = Part(Place(0, 0, 1024 * MIB), "target")
    zeroes.write_zeroes(1024 * MIB)
    assert (zeroes.memory, zeroes.is_spooled, zeroes.filled) == (0, False, 1024 * MIB)
    zeroes.end_at(32)
    # RFC 3720, appendix B.4: 32 bytes of zeroes.
    assert zeroes.checksum().hex() == "8a9136aa"
    assert PartBody(zeroes, threading.Event()).read() == bytes(32)


@pytest.mark.parametrize("size", [3 * MIB + 1, IN_MEMORY + 3])
def test_a_part_is_read_as_a_file_from_any_position(size: int) -> None:
    content = os.urandom(size)
    part = Part(Place(3, 0, size), "target")
    for at in range(0, size, MIB):
        part.write(at, content[at : at + MIB])
    body, reference = PartBody(part, threading.Event()), io.BytesIO(content)
    for offset, whence in ((0, 2), (0, 0), (MIB - 1, 0), (5, 1), (-3, 2)):
        assert body.seek(offset, whence) == reference.seek(offset, whence)
        assert body.tell() == reference.tell()
        assert body.read(16384) == reference.read(16384)
    assert b"".join(part.pieces()) == content
    part.drop()


def test_a_body_ends_in_the_middle_when_sending_is_given_up() -> None:
    part = Part(Place(0, 0, 100), "target")
    stopping = threading.Event()
    body = PartBody(part, stopping)
    assert len(body.read(50)) == 50
    stopping.set()
    with pytest.raises(OSError, match="given up"):
        body.read(50)


def test_a_temporary_file_that_cannot_be_made_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/nonexistent")
    part = Part(Place(0, 0, IN_MEMORY + 1), "s3://b/k")
    with pytest.raises(SinkError, match=r"^s3://b/k: keeping a part in a temporary file until it is sent: No such"):
        part.write(0, b"1")


def test_what_waits_to_be_sent_is_bounded() -> None:
    sending: set[int] = set()
    most = 0
    lock = threading.Lock()

    def send(part: Part) -> None:
        nonlocal most
        with lock:
            sending.add(part.number)
        time.sleep(0.01)
        with lock:
            sending.discard(part.number)

    sender = PartSender(send)
    unsent: list[Part] = []
    for number in range(40):
        part = Part(Place(number, 0, 30 * MIB), "target")
        part.write(0, b"1")
        sender.submit(part)
        unsent = [other for other in [*unsent, part] if other.memory]
        most = max(most, sum(other.memory for other in unsent))
    sender.wait()
    sender.stop(1)
    assert 30 * MIB < most <= MAX_MEMORY
    assert len([thread for thread in threading.enumerate() if thread.name == "diskfs-upload"]) <= MAX_THREADS


def test_what_fails_to_be_sent_fails_the_next_part_and_the_end() -> None:
    def send(part: Part) -> None:
        raise SinkError(f"part {part.number}")

    sender = PartSender(send)
    sender.submit(Part(Place(0, 0, 10), "target"))
    with pytest.raises(SinkError, match="part 1"):
        sender.wait()
    with pytest.raises(SinkError, match="part 1"):
        sender.submit(Part(Place(1, 0, 10), "target"))
    sender.stop(1)
