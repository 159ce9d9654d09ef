"""The parts of scripts/differential: images that qemu makes, what other readers say of them, and known differences."""
