"""VMDK: every kind of disk that is made of files.

monolithicSparse and streamOptimized in one file, versions 1 to 3; by their descriptor, monolithicFlat,
twoGbMaxExtentFlat, twoGbMaxExtentSparse, vmfs in all its forms, vmfsSparse (COWD), seSparse and custom; sparse headers
of capacity 0 that only hold a descriptor; and deltas of all of them. Refused by name: disks that are physical devices
(vmfsRDM, vmfsRaw, fullDevice, partitionedDevice and the like), extents marked NOACCESS, encrypted disks, seSparse
extents whose journal has to be replayed.

Specification: VMware, Virtual Disk Format 5.0 (2011). Little-endian; offsets and sizes count 512-byte sectors.
`header.py` is the sparse header and its footer, `cowd.py` and `sesparse.py` are those of ESX, `descriptor.py` the text;
`grains.py` and `sparse.py` find the grains, `extents.py` opens what the text lists, `image.py` puts it together,
`parent.py` finds the parent of a delta; `checks.py` is what `verify` examines.
"""

from diskfs_formats.vmdk.driver import VmdkDriver

__all__ = ["VmdkDriver"]
