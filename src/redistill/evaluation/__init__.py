"""Evaluation of a model: answers to test sets with their scores, and the validation scores that choose a checkpoint.

Nothing here depends on how the model was trained.
"""
