"""The toy world: a generated data set that a tiny model can learn in minutes."""
