"""`redistill inspect`: examples, corrections, DAC-KL intervals and answers of a run.

This package trains nothing and writes nothing to a run folder.
"""
