"""Losses as pure functions and small modules: torch in, torch out, no model library."""
