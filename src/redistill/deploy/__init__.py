"""Use of a trained student: export to other programs, publication, and chat.

The input is a finished run folder or a model. Nothing in this package trains a model or changes the files of a run.
"""
