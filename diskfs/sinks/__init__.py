"""Where bytes go: files, pipes, block devices. Nothing is published before `commit`, where the target allows it."""
