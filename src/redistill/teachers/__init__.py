"""Teachers: sources of teacher logits for a batch's sampled rows."""
