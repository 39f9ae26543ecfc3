"""From finished runs to a comparison: tables, tests, costs and budgets, before any format."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redistill.errors import CheckpointError
from redistill.reports.budgets import Budgets, check_budgets
from redistill.reports.comparison import by_primary, columns, compare, entrants
from redistill.reports.costs import machines, method_cost, teacher_cost
from redistill.reports.lineup import read_lineup
from redistill.reports.published import read_published
from redistill.reports.records import comparison_fields, comparison_records, published_records
from redistill.reports.statistics import FLIPS, RESAMPLES, TIE
from redistill.reports.tables import Table, contrast_table, cost_table, other_scores_table, published_table, score_table

TESTS = (
    "Differences are paired prompt by prompt, a prompt's score being its mean over evaluation seeds. The 95 % interval is a "
    f"bootstrap over prompts ({RESAMPLES:,} draws) and, where two training seeds or more are shared with the baseline, over "
    "these pairs of seeds as well, independently of the prompts; with two or three seeds it is still too narrow for what other "
    f"seeds may do. p is that of a sign-flip permutation test over prompts ({FLIPS:,} flips, two-sided), with training seeds "
    "averaged: it is about the models at hand, so it may be small where the interval, which looks beyond them, holds 0. Holm's "
    "correction is over the methods of a table. Better, equal and worse count prompts, equal meaning a difference within "
    f"{TIE:g}. The average gives every data set the same weight."
)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A finished comparison, ready to be written.

    Args:
        tables: Scores, differences, other scores, costs, published figures, in this order; of the first three one set for each
            primary metric of the test sets.
        tests: How intervals and p-values were made.
        left_out: Runs of a sweep that are not finished.
        records: All figures in full, a flat record for each model and column.
        fields: The names that records may have, in order.
    """

    name: str
    baseline: str
    tables: Sequence[Table]
    budgets: Budgets
    tests: str
    left_out: Sequence[str]
    records: Sequence[dict[str, Any]]
    fields: Sequence[str]


def compare_runs(
    folders: Sequence[Path], *, baseline: str | None = None, labels: Sequence[str] = (), published: Sequence[str] = ()
) -> Comparison:
    """Scores, paired tests against a baseline, costs, and whether budgets were equal; see `build_comparison`."""
    tables = {name: read_published(name) for name in published}
    lineup = read_lineup(folders, baseline, labels)
    models = entrants(lineup)
    over = columns(models)
    if not over:
        raise CheckpointError(
            f"{', '.join(map(str, folders))}: no test set was evaluated; name some in the recipe's data.tests"
        )
    rows = compare(models, over, [model for model in models if model.label == lineup.baseline and model.is_method])
    costs = {label: method_cost(lineup.of(label)) for label in lineup.labels}
    teacher = teacher_cost(lineup.entries)
    groups = by_primary(over)
    contrasts = [
        contrast_table(column, rows, lineup.baseline, is_detail=column is not group[-1])
        for group in groups
        for column in (group[-1], *group[:-1])
    ]
    return Comparison(
        name=lineup.name,
        baseline=lineup.baseline,
        tables=[
            *(score_table(models, group, rows, apart=place > 0) for place, group in enumerate(groups)),
            *(table for table in contrasts if table is not None),
            *(other_scores_table(group[-1], rows, apart=place > 0) for place, group in enumerate(groups)),
            cost_table(costs, teacher, groups[0][-1], rows, machines(lineup.entries)),
            *(published_table(name, table) for name, table in tables.items()),
        ],
        budgets=check_budgets(lineup),
        tests=TESTS,
        left_out=lineup.left_out,
        records=[
            *comparison_records(rows, costs),
            *(line for name, table in tables.items() for line in published_records(name, table)),
        ],
        fields=comparison_fields(over, tables.values()),
    )
