"""Processes: signals, dead ranks, out-of-memory retries, and parameter placement."""
