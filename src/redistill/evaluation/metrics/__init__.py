"""Metrics of generated text; none of them imports torch."""
