"""What tries the store of overlays: a simulated disk, random operations against a byte array, crashes and faults."""
