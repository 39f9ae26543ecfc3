"""Reading, rendering and tokenization of data sets.

`reader` reads records from a file or the Hugging Face hub, `templates` renders them as text, and `tokenize` encodes the text as
token ids.  `tasks` describes the test sets of the literature.
"""
