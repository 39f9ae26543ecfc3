"""Phrases of the response: where they are (`extract`, `align`), and the spans of a token sequence (`mark`)."""
