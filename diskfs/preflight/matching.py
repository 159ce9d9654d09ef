"""From an error text of AWS to the entry of the troubleshooting chapter that explains it.

Texts come from logs, consoles and mails: with other quotes, other case, a request's id, or words before and behind.
difflib of the standard library compares them, and docs/decisions/0020-rules-as-data-and-the-report.md says why that is
enough.
"""

import difflib
import re
from dataclasses import dataclass

from diskfs.preflight.rules.catalogue import ErrorEntry, errors

MAX_TEXT = 4000
"""Characters of a text that are looked at."""
GOOD = 0.6
"""Likeness from which an entry is offered; unrelated English sentences stay below 0.5."""


@dataclass(frozen=True, slots=True)
class Found:
    """An entry, and how like it the text is: 1 is the same."""

    entry: ErrorEntry
    likeness: float


def find_entries(text: str, *, limit: int = 3) -> list[Found]:
    """Return the entries whose message is most like `text`, the best first; none if nothing is like it.

    Entries with the same message (an error of two operations) are both returned.
    """
    words = _words(text[:MAX_TEXT])
    rated = [Found(entry, max(_likeness(words, _words(message)) for message in entry.messages)) for entry in errors()]
    rated.sort(key=lambda found: -found.likeness)
    good = [found for found in rated if found.likeness >= GOOD]
    if good and good[0].likeness > 0.95:
        good = [found for found in good if found.likeness > 0.95]
    return good[:limit]


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


def _words(text: str) -> list[str]:
    """Return the words in lower case; what the guide writes as <...>, and ids and numbers, are left out."""
    text = re.sub(r"<[^<>]{0,80}>", " ", text.casefold())
    text = re.sub(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", " ", text)
    return re.findall(r"[a-z][a-z0-9]*|\d+(?:\.\d+)*", text)
