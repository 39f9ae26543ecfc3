"""Teachers, whose logits are the targets of the distillation terms."""
