"""Configuration: a recipe and its YAML form, methods, and external components."""
