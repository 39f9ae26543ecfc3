"""Processes: signals, dead ranks, and where a model's weights are placed."""
