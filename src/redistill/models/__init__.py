"""Causal language models: load them, build students from them, split them into body and head, let them write.

Import from the modules: `load`, `initialise`, `generate`, `families`, `fetch`.  Nothing is imported here, since transformers
takes seconds.
"""
