"""The parts of scripts/fuzz: specimens, what may change in them, what is done with them, and campaigns of that."""
