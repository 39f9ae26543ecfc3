"""Losses: pure functions and small modules on tensors, without any model library."""
