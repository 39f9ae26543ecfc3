"""Phrases of the response: where they are (`extract`, `align`) and the loss that keeps the relations inside them (`loss`)."""

from redistill.spans.loss import SpanConfig, pair_distance, pair_weights, span_loss

__all__ = ["SpanConfig", "pair_distance", "pair_weights", "span_loss"]
