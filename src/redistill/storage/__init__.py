"""Files: atomic writes, locks, tensor files, and text that is safe to show."""
