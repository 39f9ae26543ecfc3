"""Reports of single runs, and comparisons of several runs.

The package reads the files of run folders and never loads a model.
"""
