"""The helpers that other tests trust."""

import hashlib
from pathlib import Path

import pytest

from tests.helpers import CorpusRow, assert_same_bytes, first_difference, sha256_of


def test_equal_buffers_of_different_types_are_the_same() -> None:
    assert_same_bytes(bytearray(b"abc"), memoryview(b"abc"))


@pytest.mark.parametrize("size", [1, 2, 3, 4096, 4097])
def test_the_first_difference_is_found_wherever_it_is(size: int) -> None:
    for offset in {0, 1, size // 2, size - 2, size - 1} & set(range(size)):
        other = bytearray(size)
        other[offset] = 1
        other[-1] = 1
        assert first_difference(bytes(size), other) == offset


@pytest.mark.parametrize(("one", "other"), [(b"abc", b"ab"), (b"ab", b"abc")])
def test_a_buffer_that_ends_early_differs_where_it_ends(one: bytes, other: bytes) -> None:
    assert first_difference(one, other) == 2


def test_a_difference_is_named_with_what_was_found_and_expected() -> None:
    with pytest.raises(AssertionError, match=r"offset 0x3: found 04, expected ff \(4 bytes, expected 4\)"):
        assert_same_bytes(b"\x01\x02\x03\x04", b"\x01\x02\x03\xff")


def test_a_missing_end_is_named() -> None:
    with pytest.raises(AssertionError, match=r"offset 0x1: found the end, expected 02 \(1 bytes, expected 2\)"):
        assert_same_bytes(b"\x01", b"\x01\x02")


def test_pieces_hash_as_one() -> None:
    assert sha256_of([b"ab", memoryview(b"c")]) == hashlib.sha256(b"abc").hexdigest()


def test_every_file_of_the_corpus_is_unpacked_whole(corpus: Path, manifest: list[CorpusRow]) -> None:
    sizes = {row.path: row.size for row in manifest if not row.is_member}
    assert sizes
    assert {path: (corpus / path).stat().st_size for path in sizes} == sizes
