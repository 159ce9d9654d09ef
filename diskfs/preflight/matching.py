"""From an error text of AWS to the entry of the troubleshooting chapter that explains it.

Texts come from logs, consoles, mails and memory: with other quotes, other case, a request's id, words before and
behind, the first half alone, or typing errors.
difflib of the standard library compares them, and docs/decisions/0020-rules-as-data-and-the-report.md says why that is
enough.
"""

import difflib
import functools
import math
import re
from dataclasses import dataclass

from diskfs.preflight.rules.catalogue import ErrorEntry, errors

MAX_TEXT = 4000
"""Characters of a text that are looked at."""
GOOD = 0.6
"""Likeness from which an entry is offered; unrelated English sentences stay below 0.5."""
EXACT = 0.95
"""Likeness above which an entry is the one, and what is only somewhat like it is not offered."""
PART = 0.85
"""How much of a text has to be in a message, and how close together, for the text to be a part of it."""
RARE = 3.0
"""How telling the words of a part are to be together: a word is worth the logarithm of how rare it is."""
LONG_WORD = 10
"""Letters of a word that is a name and tells enough alone, such as FirstBootFailure."""
MAX_UNKNOWN = 60
"""Words of a text that are taken for another one's misspelling."""


@dataclass(frozen=True, slots=True)
class Found:
    """An entry, and how like it the text is: 1 is the same."""

    entry: ErrorEntry
    likeness: float


def find_entries(text: str, *, limit: int = 3) -> list[Found]:
    """Return the entries whose message is most like `text`, the best first; none if nothing is like it.

    Entries with the same message (an error of two operations) are both returned.
    """
    words = _spelled(_words(text[:MAX_TEXT]))
    rated = [max((_rated(entry, words, message) for message in entry.messages), key=_by_likeness) for entry in errors()]
    rated.sort(key=lambda pair: -_by_likeness(pair))
    good = [(found, is_part) for found, is_part in rated if found.likeness >= GOOD]
    if good and good[0][0].likeness > EXACT:
        good = [(found, is_part) for found, is_part in good if found.likeness > EXACT or is_part]
    return [found for found, _ in good][:limit]


def _by_likeness(rated: tuple[Found, bool]) -> float:
    return rated[0].likeness


def _rated(entry: ErrorEntry, words: list[str], message: str) -> tuple[Found, bool]:
    """Return how like the text is, and whether it is all there in one piece."""
    wanted = _message_words(message)
    part = _part(words, wanted)
    return Found(entry, max(_likeness(words, wanted), part)), part == _LIKENESS_OF_PIECE


_LIKENESS_OF_PIECE = 0.9


def _part(text: list[str], message: list[str]) -> float:
    """Return how like a message a text is that may be a part of it: 0.9 if it is a piece of it, 0 if it is none."""
    if not text:
        return 0.0
    matcher = difflib.SequenceMatcher(None, text, message, autojunk=False)
    blocks = [block for block in matcher.get_matching_blocks() if block.size]
    matched = [word for block in blocks for word in text[block.a : block.a + block.size]]
    if len(matched) < PART * len(text):
        return 0.0
    span = blocks[-1].b + blocks[-1].size - blocks[0].b
    is_name = len(text) == 1 and len(text[0]) >= LONG_WORD
    worth = sum(_worth().get(word, 0.0) for word in matched)
    if not is_name and (len(matched) < PART * span * PART or worth < RARE):
        return 0.0
    return _LIKENESS_OF_PIECE if len(matched) == len(text) == span else GOOD + 0.2 * len(matched) / len(text)


@functools.cache
def _worth() -> dict[str, float]:
    """Return the words of all messages, and how telling each is."""
    counts: dict[str, int] = {}
    for entry in errors():
        for word in {word for message in entry.messages for word in _message_words(message)}:
            counts[word] = counts.get(word, 0) + 1
    return {word: math.log(len(errors()) / count) for word, count in counts.items()}


def _spelled(words: list[str]) -> list[str]:
    """Return the words with those that no message has replaced by the one that was meant, if one is very like it."""
    known = [word for word in _worth() if len(word) > 3]
    unknown = [word for word in dict.fromkeys(words) if word not in _worth() and 3 < len(word) < 40]
    meant = {}
    for word in unknown[:MAX_UNKNOWN]:
        close = difflib.get_close_matches(word, known, 1, 0.8)
        if close:
            meant[word] = close[0]
    return [meant.get(word, word) for word in words]


def _likeness(text: list[str], message: list[str]) -> float:
    """Return how much of the message is in the text, in order, and how little else there is between its words."""
    if not text or not message:
        return 0.0
    matcher = difflib.SequenceMatcher(None, text, message, autojunk=False)
    blocks = [block for block in matcher.get_matching_blocks() if block.size]
    matched = sum(block.size for block in blocks)
    if not matched:
        return 0.0
    span = blocks[-1].a + blocks[-1].size - blocks[0].a
    covered = matched / len(message)
    dense = matched / span
    return covered * (0.7 + 0.3 * dense)


@functools.cache
def _message_words(message: str) -> list[str]:
    return _words(message)


def _words(text: str) -> list[str]:
    """Return the words in lower case; what the guide writes as <...>, and ids and numbers, are left out."""
    text = re.sub(r"<[^<>]{0,80}>", " ", text.casefold())
    text = re.sub(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", " ", text)
    return re.findall(r"[a-z][a-z0-9]*|\d+(?:\.\d+)*", text)
