"""Phrases of responses, as spans of token sequences.

`extract` finds phrases in text, `align` converts them to token ranges, and `mark` adds the ranges to sequences.
"""
