"""Tests of generation use the tiny models of tests/models."""

from tests.models.conftest import tiny

__all__ = ["tiny"]
