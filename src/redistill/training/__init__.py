"""Training: the loop, the objective, the optimiser, checkpoints, metrics and guards."""
