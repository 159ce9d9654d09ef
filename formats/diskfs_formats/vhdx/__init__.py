"""VHDX: fixed, dynamic and differencing, with the log replayed in memory.

Specification: Microsoft, [MS-VHDX] Virtual Hard Disk v2 (VHDX) File Format, revision 8.0 (2024). Little-endian; GUIDs
in Microsoft's mixed order; offsets and lengths in bytes, except those of BAT entries, which count MiB.
`structures.py` declares what is on disk, `headers.py` and `regions.py` read the header section, `log.py` finds what a
crash left to do, `replayed.py` shows the file with that done, `metadata.py` and `parent.py` say what the disk is,
`bat.py` and `image.py` where its bytes are, `checks.py` what `verify` examines.
"""

from diskfs_formats.vhdx.driver import VhdxDriver

__all__ = ["VhdxDriver"]
