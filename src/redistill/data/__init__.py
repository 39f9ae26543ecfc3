"""Data, from a file or the hub to token ids.

`reader` reads records, `templates` renders them as text and `tokenize` encodes the text; `tasks` are the known test sets.
"""
