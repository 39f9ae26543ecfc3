"""Causal language models: loading, initialising students, LoRA adapters, and the split into body and head.

Import from the modules (`load`, `initialise`, `lora`, `families`, `fetch` ...).  The package imports nothing itself, because
importing transformers takes seconds.
"""
