"""A comparison as flat records, in full precision, for whoever wants to compute with it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from redistill.reports.comparison import Row
from redistill.reports.costs import PEAK, SUMMED, Cost
from redistill.reports.published import Published

COSTS = (*SUMMED, PEAK, "parameters")
FIELDS = (
    *("model", "role", "column", "rouge_l", "rouge_l_sd", "sd_over", "training_seeds", "evaluation_seeds", "prompts"),
    *("versus", "difference", "lower", "upper", "p", "p_holm", "wins", "ties", "losses", "paired_seeds", "note"),
    *("exact_match", "length_tokens", "eos_rate", "distinct_2", "cross_entropy", "kl", "agreement"),
    *COSTS,
)


def comparison_records(rows: Sequence[Row], costs: Mapping[str, Cost]) -> Iterator[dict[str, Any]]:
    """A record for each model and column; costs, which are of the whole run, stand with each of a method's records."""
    for row in rows:
        cost = costs.get(row.model) if row.is_method else None
        yield {
            "model": row.model,
            "role": row.role,
            "column": row.column,
            "rouge_l": row.rouge.mean,
            "rouge_l_sd": row.rouge.deviation,
            "sd_over": None if row.rouge.deviation is None else row.rouge.over,
            "training_seeds": row.rouge.num_trainings,
            "evaluation_seeds": row.rouge.num_seeds,
            "prompts": row.num_prompts,
            "note": row.note,
            **row.scores,
            **_difference(row),
            **({} if cost is None else {name: cost.figures[name] for name in COSTS}),
        }


def published_records(name: str, table: Published) -> Iterator[dict[str, Any]]:
    """The figures of a table of the paper, with its name as their role."""
    for label, figures in table.rows.items():
        for column, figure in zip(table.columns, figures, strict=True):
            yield {"model": label, "role": f"published {name}", "column": column, "rouge_l": figure}


def _difference(row: Row) -> dict[str, Any]:
    found = row.contrast
    if found is None or not row.is_method:
        return {}
    return {
        "versus": row.versus,
        "difference": found.interval.difference,
        "lower": found.interval.lower,
        "upper": found.interval.upper,
        "p": found.p,
        "p_holm": found.p_holm,
        "wins": found.wins,
        "ties": found.ties,
        "losses": found.losses,
        "paired_seeds": found.num_seeds,
    }
