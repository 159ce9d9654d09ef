"""Readers of the file systems inside disks. They run in the child of `diskfs.guest.serving` and nowhere else.

Several are libraries written in C that were not made for hostile bytes, so a reader may end the process that it runs
in; `diskfs.guest.child` turns that into a GuestError.
"""
