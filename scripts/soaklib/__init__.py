"""The parts of scripts/soak-convert: one conversion, what goes wrong with it, and what must be left."""
