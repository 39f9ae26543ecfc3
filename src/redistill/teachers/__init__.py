"""Teachers, which compute logits for the rows that distillation terms use."""
