"""`python -m diskfs`."""

import sys

from diskfs.cli.main import main

sys.exit(main())
