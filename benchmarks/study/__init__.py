"""The study: every method from the same start, on a real model or at toy size."""
