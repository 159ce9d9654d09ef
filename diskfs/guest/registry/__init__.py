"""Registry hives of Windows: read-only, in places, bounded against hostile files.

Specification: Maxim Suhanov, Windows registry file format specification (2015-2025). Little-endian; offsets of cells
count from the end of the base block, 4096 bytes into the file.
"""

from diskfs.guest.registry.hive import Hive, Key, Value, ValueType, open_hive

__all__ = ["Hive", "Key", "Value", "ValueType", "open_hive"]
