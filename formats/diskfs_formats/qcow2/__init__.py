"""qcow2, versions 2 and 3: deflate and zstd compressed clusters, extended L2 entries, a backing file.

Specification: QEMU, docs/interop/qcow2.txt (2025). Big-endian; offsets and sizes in bytes, the stored size of a
compressed cluster in 512-byte sectors. Encryption and external data files are refused by name. Internal snapshots and
refcounts are not needed to read the active disk and are not read.
`header.py` reads the first cluster, `entries.py` says what an L2 entry means, `image.py` where the disk's bytes are,
`compression.py` decodes clusters, `checks.py` is what `verify` examines.
"""

from diskfs_formats.qcow2.driver import Qcow2Driver

__all__ = ["Qcow2Driver"]
