"""The toy world: a generated data set that a tiny model learns in minutes."""
