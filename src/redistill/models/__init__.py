"""Causal language models: loading, new students, adapters, body and head.

Import from the modules (`load`, `initialise`, `lora`, `families`, `fetch` ...).  The package imports nothing itself, because
importing transformers takes seconds.
"""
