"""Configuration: dataclasses of a recipe, their YAML form, methods, and external components."""
