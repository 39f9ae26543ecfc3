"""Reads judge.json, the results of `redistill judge`, and builds their table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from redistill.errors import CheckpointError, DataError
from redistill.records import Json
from redistill.reports.folders import at, mapping, number, read_object
from redistill.reports.pages import NOTHING, counted, fixed
from redistill.reports.tables import Cell, Line, Table

FILE = "judge.json"
_COUNTS = ("prompts", "wins", "ties", "losses", "disagreements", "unparsed", "missing")
_COSTS = ("requests", "prompt_tokens", "completion_tokens", "price")
_COLUMNS = ("test set", "against", "judge", "prompts", "wins, ties, losses", "score", "differ", "unparsed", "missing")


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """How often a judge preferred the answers of a model, on one data set.

    More than 12 fields: a page shows each of them.

    Args:
        model: Name of the judge.
        against: The other answers: "reference", "teacher", "before", or the folder of another model.
        dataset: Name of the data set.
        seeds: Evaluation seeds of the answers.
        limit: Only the first `limit` prompts of the data set were judged; None for all prompts.
        prompts: Number of prompts with a judged pair of answers.
        wins, ties, losses: Numbers of judged pairs.  The judge compares each pair twice, the second time with the answers
            exchanged.  If the two verdicts differ, the pair is a tie.
        disagreements: Number of ties whose two verdicts differ.
        unparsed: Number of pairs without a score.  The judge's reply was not "A", "B" or "tie".
        missing: Number of answers that were not judged because there was no other answer to the prompt.
        score: Mean score in [0, 1]: a win is 1, a tie 0.5 and a loss 0.  None if no pair has a score.
        lower, upper: 95 % interval of `score`, by bootstrap over prompts; None without a score.
        by_prompt: Mean score of each prompt, by its id.
        cost: "requests", "prompt_tokens" and "completion_tokens" of all verdicts of the comparison, over all data sets; and
            their "price", if it is known.
    """

    model: str
    against: str
    dataset: str
    seeds: Sequence[str]
    limit: int | None
    prompts: int
    wins: int
    ties: int
    losses: int
    disagreements: int
    unparsed: int
    missing: int
    score: float | None
    lower: float | None
    upper: float | None
    by_prompt: Mapping[str, float]
    cost: Mapping[str, float]


def read_judgements(folder: Path) -> list[Judgement]:
    """Return the results in judge.json of a folder; [] if there is no such file.

    Raises:
        CheckpointError: the file is damaged, or has a newer schema.
    """
    path = folder / FILE
    if not path.is_file():
        return []
    try:
        comparisons = read_object(path).get("comparisons")
    except DataError as error:
        raise CheckpointError(f"{error}; remove the file, and run redistill judge again") from error
    listed = comparisons if isinstance(comparisons, list) else []
    return [judgement for comparison in listed for judgement in judgements_of(comparison)]


def judgements_of(comparison: Json) -> list[Judgement]:
    """Return the results of one comparison in judge.json, one for each data set."""
    found, seeds, limit = [], at(comparison, "seeds"), number(at(comparison, "limit"))
    costs = {name: number(at(at(comparison, "total") or at(comparison, "cost"), name)) for name in _COSTS}
    for dataset, about in mapping(at(comparison, "datasets")).items():
        scores = mapping(at(about, "by_prompt")).items()
        found.append(
            Judgement(
                model=str(at(comparison, "model")),
                against=str(at(comparison, "against")),
                dataset=dataset,
                seeds=list(map(str, seeds)) if isinstance(seeds, list) else [],
                limit=None if limit is None else int(limit),
                **{name: int(number(at(about, name)) or 0) for name in _COUNTS},
                score=number(at(about, "score")),
                lower=number(at(about, "lower")),
                upper=number(at(about, "upper")),
                by_prompt={name: score for name, value in scores if (score := number(value)) is not None},
                cost={name: value for name, value in costs.items() if value is not None},
            )
        )
    return found


def judge_table(judged: Sequence[tuple[str, Judgement]]) -> Table | None:
    """Build the table of the results of judges; None if there are none.

    Args:
        judged: The results, each with the label of its row.
    """
    if not judged:
        return None
    return Table(
        key="judge",
        title="Judge",
        caption="A chat model compared two answers to each prompt. It did not see whose they are. It compared them again with "
        "the answers exchanged: if its two verdicts differ, the pair is a tie, and differ counts it. The score counts a win as "
        "1, a tie as 0.5 and a loss as 0, with the 95 % interval of a bootstrap over prompts. Unparsed pairs have no score. "
        "Missing answers were not judged, since the other model has no answer to the prompt. The verdicts are those of a "
        "model, not of people.",
        columns=["", *_COLUMNS],
        lines=[Line(label, "method", _cells(found)) for label, found in judged],
    )


def judge_cost_table(judged: Sequence[tuple[str, Judgement]]) -> Table | None:
    """Build the table of the costs of judges, with one line per comparison.

    Args:
        judged: The results, each with the label of its row.
    """
    by_comparison = {(label, found.model, found.against, *found.seeds, found.limit): found for label, found in judged}
    known = [(str(key[0]), found) for key, found in by_comparison.items() if found.cost]
    if not known:
        return None
    return Table(
        key="judge-cost",
        title="Cost of the judge",
        caption="Requests to the judge and their tokens, for all data sets of a comparison. Verdicts of earlier calls are "
        "included. The price is in the currency of the option --price, and unknown without this option.",
        columns=["", "against", "judge", "requests", "prompt tokens", "generated tokens", "price"],
        lines=[
            Line(label, "method", [*map(Cell, (found.against, found.model)), *_cost_cells(found)]) for label, found in known
        ],
    )


def _cost_cells(found: Judgement) -> list[Cell]:
    counts = [found.cost.get(name) for name in _COSTS[:-1]]
    price = found.cost.get("price")
    return [
        *(Cell(NOTHING if count is None else f"{count:,.0f}") for count in counts),
        Cell(NOTHING if price is None else f"{price:.4g}"),
    ]


def _cells(found: Judgement) -> list[Cell]:
    """Return the cells of one row in the table of results of judges."""
    answers = f"{'seed' if len(found.seeds) == 1 else 'seeds'} {', '.join(found.seeds)}" if found.seeds else ""
    answers += "" if found.limit is None else f"; first {counted(str(found.limit), 'prompt')}"
    interval = "" if found.score is None else f"[{fixed(found.lower, 3)}, {fixed(found.upper, 3)}]"
    return [
        *map(Cell, (found.dataset, found.against, found.model)),
        Cell(str(found.prompts), answers),
        Cell(f"{found.wins}, {found.ties}, {found.losses}"),
        Cell(fixed(found.score, 3), interval),
        *(Cell(str(count)) for count in (found.disagreements, found.unparsed, found.missing)),
    ]
