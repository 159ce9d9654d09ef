"""The names of the files in the folder of an overlay."""

import re

DESCRIPTION = "overlay.json"
NEW_DESCRIPTION = "overlay.json.new"
REMOVED = "overlay.json.removed"
"""What the description is called while the overlay is being removed: whoever finds it removes the rest."""
LOCK = "lock"
_OURS = re.compile(r"lock|overlay\.json(\.new|\.removed)?|disk\d+\.index|disk\d+\.data(\.\d+)?")


def index_name(disk: int) -> str:
    """Return the name of a disk's index file."""
    return f"disk{disk}.index"


def data_name(disk: int, segment: int) -> str:
    """Return the name of a file of a disk's data; the first has no number."""
    return f"disk{disk}.data" + (f".{segment}" if segment else "")


def ours(names: list[str]) -> list[str]:
    """Return those of some names that an overlay may have."""
    return [name for name in names if _OURS.fullmatch(name)]
