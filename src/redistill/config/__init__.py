"""Configuration: the tree of a run, its YAML form, methods, and parts from outside the package."""
