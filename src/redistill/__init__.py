"""redistill: make a small language model out of a large one.

Light to import: names are loaded when they are first used, so `import redistill.divergences` costs torch and nothing else.
"""

__version__ = "0.1.0"
