"""The parts of scripts/corpus-report: what must come of each image of the corpus, and reading it as a user does."""
