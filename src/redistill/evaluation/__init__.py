"""Evaluation of a model: its answers to test sets, and scores of them.

Validation scores choose a checkpoint.  Nothing here depends on how the model was trained.
"""
