"""Evaluation of a model: its answers to test sets, and the scores of the answers.

Scores on validation data select the best checkpoint.  This package does not depend on how the model was trained.
"""
