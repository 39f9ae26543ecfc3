"""Runs: training, evaluation and report of a configuration, in a run folder."""
