"""Clients of servers that a recipe names: addresses, HTTP, and completions."""
