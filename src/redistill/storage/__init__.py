"""Storage: atomic file writes, folder locks, tensor files, and redaction of text."""
