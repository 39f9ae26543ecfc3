"""Training: loop, objective, optimiser, checkpoints, metrics and guards."""
