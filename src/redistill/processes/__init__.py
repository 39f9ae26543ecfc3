"""Processes: signal handling, detection of dead ranks, out-of-memory retries, and placement of parameters."""
