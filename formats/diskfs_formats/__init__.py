"""Byte layouts of virtual disks, appliances and partition tables.

Nothing here opens a file or a socket: bytes come from a `ByteSource` that the caller hands in.
"""
