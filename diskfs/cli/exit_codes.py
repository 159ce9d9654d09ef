"""The exit codes that scripts rely on."""

DONE = 0
FAILED = 1
"""It failed: one line on standard error says what, where, and what to do."""
USAGE = 2
NOT_QUALIFIED = 3
"""It ran, and the answer is no."""
INTERRUPTED = 130
