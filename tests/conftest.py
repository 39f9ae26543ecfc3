"""Fixtures that many tests share: tiny models and tokenizers, made here, so that no test needs a network."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that asks the hub must fail, not wait
