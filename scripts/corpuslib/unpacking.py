"""The corpus unpacked: where the tests keep it, or else for this run."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from tests.helpers import MANIFEST, STORED_CORPUS


def unpacked(scratch: Path) -> Path:
    """Return the folder of the unpacked corpus: the one that tests keep between runs if it is there, else below
    `scratch`, where it is unpacked and verified now.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diskfs-tests"
    kept = cache / f"corpus-{hashlib.sha256(MANIFEST.read_bytes()).hexdigest()[:16]}"
    if kept.is_dir():
        return kept
    folder = scratch / "corpus"
    subprocess.run([sys.executable, str(STORED_CORPUS / "unpack"), str(folder)], check=True, stdout=subprocess.DEVNULL)
    return folder
