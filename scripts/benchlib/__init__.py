"""Measures diskfs beside other programs that do the same work; `scripts/bench` is the command."""
