"""Metrics of generated text, with one module per metric; no module imports torch."""

from collections.abc import Mapping

from redistill.evaluation.metrics import chrf, exact_match, final_number, rouge_l
from redistill.records import Metric

__all__ = ["DEFAULT", "METRICS"]

METRICS: Mapping[str, Metric] = {
    metric.name: metric for metric in (rouge_l.METRIC, exact_match.METRIC, chrf.METRIC, final_number.METRIC)
}
DEFAULT = (rouge_l.METRIC.name, exact_match.METRIC.name)
"""Names of the default metrics, which the papers use."""
