"""The parts of scripts/matrix: the disks that are converted, and the judges of what came of it."""
