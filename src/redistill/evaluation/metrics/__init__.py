"""Metrics of generated text, with one module per metric; no module imports torch."""

from collections.abc import Mapping

from redistill.evaluation.metrics import exact_match, rouge_l
from redistill.records import Metric

__all__ = ["METRICS"]

METRICS: Mapping[str, Metric] = {metric.name: metric for metric in (rouge_l.METRIC, exact_match.METRIC)}
