"""VMDK: monolithicSparse and streamOptimized, versions 1 to 3.

Specification: VMware, Virtual Disk Format 5.0 (2011). Little-endian; offsets and sizes count 512-byte sectors.
`header.py` is the sparse header and its footer, `descriptor.py` the text, `sparse.py` the grains, `checks.py` what
`verify` examines.
"""

from diskfs_formats.vmdk.driver import VmdkDriver

__all__ = ["VmdkDriver"]
