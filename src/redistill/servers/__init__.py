"""Clients of servers that a recipe names: permitted addresses, HTTP, and the completions API of OpenAI."""
