"""Processes: signals, dead ranks, out-of-memory retries, placement."""
