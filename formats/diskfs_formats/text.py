"""Strings found inside images, made fit for a terminal, a log and a message."""

MAX_SHOWN = 256
"""Characters of an untrusted name that are shown at most; a message stays one readable line."""

_UNSAFE_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def printable(text: str, limit: int = MAX_SHOWN) -> str:
    """Return `text` with control, formatting and unassigned characters escaped, cut to `limit` characters after that.

    Escapes as Python does (`\\x1b`, `\\u202e`), so terminal sequences, line breaks and text-direction marks show
    up instead of acting. The result holds no character that moves a cursor or changes how its neighbours look.
    """
    start = text[: limit + 1]
    if not (start.isascii() and start.isprintable()):
        start = "".join(_escaped(character) for character in start)
    return start if len(start) <= limit and len(text) <= limit else start[:limit] + "..."


def human_size(size: int) -> str:
    """Return a size as people read it: `1.5 GiB`."""
    value = float(size)
    for unit in _UNITS:
        if value < 1024 or unit == _UNITS[-1]:
            return f"{size} B" if unit == "B" else f"{value:.4g} {unit}"
        value /= 1024
    raise AssertionError(size)


def _escaped(character: str) -> str:
    import unicodedata  # noqa: PLC0415 - 1 MiB of tables that plain names do not need

    if unicodedata.category(character) in _UNSAFE_CATEGORIES:
        return character.encode("unicode_escape").decode("ascii")
    return character
