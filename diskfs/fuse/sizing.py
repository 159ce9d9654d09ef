"""How many bytes of a mount's files are stored as data, for what `ls -s` and `du` show."""

import time

from diskfs_formats.driver import DiskImage
from diskfs_formats.extents import ExtentKind

SIZING_SECONDS = 1.0
"""What finding out the allocated sizes of all files of a mount may take; whoever lists a folder waits for it."""
_FIRST_WINDOW = 4 << 20
_SHORT, _LONG = 0.002, 0.02


class Sizing:
    """Counts allocated bytes by the maps, within one budget of time for all files of a mount.

    What is not looked at in time counts as allocated: an upper bound, which is what an honest guess is.
    """

    def __init__(self, seconds: float = SIZING_SECONDS) -> None:
        self._left = seconds

    def allocated(self, image: DiskImage) -> int:
        """Return how many bytes of the disk are stored as data, as far as the budget reaches."""
        total = offset = 0
        window = _FIRST_WINDOW
        while offset < image.size and self._left > 0:
            # In windows, because the map joins what belongs together before it gives anything out.
            length = min(window, image.size - offset)
            began = time.monotonic()
            total += sum(extent.length for extent in image.extents(offset, length) if extent.kind is ExtentKind.DATA)
            took = time.monotonic() - began
            self._left -= took
            offset += length
            window = window * 2 if took < _SHORT else max(window // 2, _FIRST_WINDOW) if took > _LONG else window
        return total + image.size - offset
