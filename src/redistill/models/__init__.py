"""Causal language models: loading, new students, adapters, body and head.

Import names from the modules of this package, such as `load` or `lora`. The package itself imports nothing, because importing
transformers takes seconds.
"""
