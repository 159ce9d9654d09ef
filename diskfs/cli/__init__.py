"""The command line: one module for each command.

Loaded before anything else of a command, so this is where starting is made quick (docs/decisions/0010).
"""

import gc

from diskfs.cli.deferred import defer

# Loading modules makes tens of thousands of objects that stay; looking for garbage among them every 700 took a quarter
# of the time of `diskfs info`.
gc.set_threshold(50_000, 20, 20)

# construct loads both, for a debugger and a digest that we have no use for.
defer("pdb", "hashlib")
