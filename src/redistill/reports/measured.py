"""Scores, differences and training costs of the runs of a comparison."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from redistill.errors import CheckpointError
from redistill.reports.comparison import Column, Entrant, Row, columns, comparison_rows, entrants
from redistill.reports.costs import Cost, method_cost
from redistill.reports.lineup import Lineup, read_lineup


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The compared runs with the scores and training costs of their models.

    Args:
        lineup: The runs.
        models: Teachers, students before training, and methods.
        columns: Data sets and averages on which the models are compared.
        rows: Scores of each model in each column, with differences to the baseline.
        costs: Training cost of each method, by label.
    """

    lineup: Lineup
    models: Sequence[Entrant]
    columns: Sequence[Column]
    rows: Sequence[Row]
    costs: Mapping[str, Cost]


def read_measured(folders: Sequence[Path], baseline: str | None = None, labels: Sequence[str] = ()) -> Measured:
    """Read finished runs, and compute scores, differences and costs.

    The arguments and errors are those of `build_comparison`.
    """
    lineup = read_lineup(folders, baseline, labels)
    models = entrants(lineup)
    over = columns(models)
    if not over:
        raise CheckpointError(
            f"{', '.join(map(str, folders))}: no test set was evaluated; list at least one in data.tests of the recipe"
        )
    references = [model for model in models if model.label == lineup.baseline and model.is_method]
    return Measured(
        lineup=lineup,
        models=models,
        columns=over,
        rows=comparison_rows(models, over, references),
        costs={label: method_cost(lineup.of(label)) for label in lineup.labels},
    )
