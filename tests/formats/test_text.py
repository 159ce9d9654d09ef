"""Strings of an image on their way to a terminal."""

import unicodedata

import pytest

from diskfs_formats.text import MAX_SHOWN, printable

HARMLESS = ["", "disk.vmdk", "größer.vmdk", "磁盘.vmdk", "ディスク", "a b", "C:\\x", 'it\'s "quoted"', "€", "e\u0301"]


@pytest.mark.parametrize("text", HARMLESS)
def test_ordinary_names_are_shown_as_they_are(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;owned\x07", "\\x1b]0;owned\\x07"),
        ("\x1b[2J\x1b[31m", "\\x1b[2J\\x1b[31m"),
        ("a\r\nERROR: b", "a\\r\\nERROR: b"),
        ("\x9b31m", "\\x9b31m"),
        ("a\0b\tc\x7f", "a\\x00b\\tc\\x7f"),
        ("gpj.\u202eexe", "gpj.\\u202eexe"),
        ("\u2066a\u2069\u200f\u200e\u061c", "\\u2066a\\u2069\\u200f\\u200e\\u061c"),
        ("zero\u200bwidth\ufeff", "zero\\u200bwidth\\ufeff"),
        ("\u2028\u2029\x85", "\\u2028\\u2029\\x85"),
        ("\udcff\ud800", "\\udcff\\ud800"),
        ("\ue000\U000f0000", "\\ue000\\U000f0000"),
        ("\U000e0041tag", "\\U000e0041tag"),
        ("\uffff\u0378", "\\uffff\\u0378"),
        ("\xad", "\\xad"),
    ],
)
def test_what_would_act_on_a_terminal_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_no_character_gets_through_that_is_not_printed() -> None:
    # The planes that have control, formatting, unassigned and private characters beside printed ones.
    for start in (*range(0, 0x20000, 256), *range(0xE0000, 0xF0200, 256)):
        shown = printable("".join(map(chr, range(start, start + 256))))
        assert all(character.isprintable() or unicodedata.category(character) == "Zs" for character in shown)


def test_the_result_can_always_be_encoded() -> None:
    printable("".join(map(chr, range(0xD700, 0xE100))), 10_000).encode("utf-8")


@pytest.mark.parametrize("limit", [1, 40, MAX_SHOWN])
def test_long_names_are_cut(limit: int) -> None:
    assert printable("a" * limit, limit) == "a" * limit
    assert printable("a" * (limit + 1), limit) == "a" * limit + "..."
    assert printable("é" * (1 << 20), limit) == "é" * limit + "..."


def test_escapes_do_not_make_a_message_long() -> None:
    assert len(printable("\U000e0001" * (1 << 20))) < 3000
