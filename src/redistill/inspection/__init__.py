"""`redistill inspect`: training examples, corrections, intervals and answers.

This package trains nothing and writes nothing to a run folder.
"""
