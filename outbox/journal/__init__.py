"""What happened: the one writer of the log, and folding it (rebuild, verify)."""
