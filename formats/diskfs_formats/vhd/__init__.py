"""VHD (Virtual PC): fixed, dynamic and differencing disks, also with the 511-byte footers of before Virtual PC 2004.

Specification: Microsoft, Virtual Hard Disk Image Format Specification 1.0 (2006). Big-endian; BAT entries and sector
bitmaps count 512-byte sectors. `footer.py` finds the footer, `header.py` is the dynamic header, `parent.py` the names
of a parent, `image.py` the three kinds of disk, `checks.py` what `verify` examines.
"""

from diskfs_formats.vhd.driver import VhdDriver
from diskfs_formats.vhd.footer import is_footer_at_end

__all__ = ["VhdDriver", "is_footer_at_end"]
