"""Data, from a file or the hub to token ids: `reader` -> `templates` -> `tokenize`; `tasks` are the known test sets."""
