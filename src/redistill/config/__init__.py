"""The configuration of runs: YAML recipes, methods and classes of other packages."""
