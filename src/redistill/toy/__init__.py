"""The toy world: tasks that a tiny model learns in minutes, without a download."""
