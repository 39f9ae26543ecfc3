"""A comparison as flat records in full precision, for further processing."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from redistill.reports.comparison import GENERATED, TEACHER_FORCED, Column, Row
from redistill.reports.costs import PEAK, SUMMED, Cost
from redistill.reports.published import Published

COSTS = (*SUMMED, PEAK, "parameters")


def comparison_fields(over: Sequence[Column], published: Iterable[Published] = ()) -> list[str]:
    """Field names of the records, in order.

    Primary metrics with their standard deviations come first, then differences, other metrics and costs.
    """
    primary = dict.fromkeys([*(column.primary.name for column in over), *(table.metric for table in published)])
    others = dict.fromkeys(measure.name for column in over for measure in column.measures if measure.name not in primary)
    return [
        *("model", "role", "column", *(field for name in primary for field in (name, f"{name}_sd"))),
        *("sd_over", "training_seeds", "evaluation_seeds", "prompts"),
        *("versus", "difference", "lower", "upper", "p", "p_holm", "wins", "ties", "losses", "paired_seeds", "note"),
        *(*others, *GENERATED, *TEACHER_FORCED, *COSTS),
    ]


def comparison_records(rows: Sequence[Row], costs: Mapping[str, Cost]) -> Iterator[dict[str, Any]]:
    """One record per model and column.

    Costs belong to whole runs and are repeated in each record of a method.
    """
    for row in rows:
        cost = costs.get(row.model) if row.is_method else None
        yield {
            "model": row.model,
            "role": row.role,
            "column": row.column,
            row.measures[0].name: row.primary.mean,
            f"{row.measures[0].name}_sd": row.primary.deviation,
            "sd_over": None if row.primary.deviation is None else row.primary.over,
            "training_seeds": row.primary.num_trainings,
            "evaluation_seeds": row.primary.num_seeds,
            "prompts": row.num_prompts,
            "note": row.note,
            **row.scores,
            **_difference(row),
            **({} if cost is None else {name: cost.figures[name] for name in COSTS}),
        }


def published_records(name: str, table: Published) -> Iterator[dict[str, Any]]:
    """One record per value of a published table; the role contains the table's name."""
    for label, figures in table.rows.items():
        for column, figure in zip(table.columns, figures, strict=True):
            yield {"model": label, "role": f"published {name}", "column": column, table.metric: figure}


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
