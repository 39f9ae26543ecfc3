"""The configuration of runs: recipes in YAML, methods, and external components."""
