"""The configuration of runs: recipes, distillation methods, external components."""
