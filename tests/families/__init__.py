"""Tests of every model family: tiny random models built from the configs of transformers."""
