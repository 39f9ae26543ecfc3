"""Reports of single runs and comparisons of several.

Reads the files of run folders; never loads a model.
"""
