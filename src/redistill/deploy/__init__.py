"""Use of a trained student: export to other programs, publication, and chat.

A finished run folder or a model comes in; nothing in this package trains or changes a run.
"""
