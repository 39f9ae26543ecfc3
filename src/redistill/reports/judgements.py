"""Reads judge.json, the results of `redistill judge`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from redistill.errors import CheckpointError, DataError
from redistill.records import Json
from redistill.reports.folders import at, mapping, number, read_object

FILE = "judge.json"
_COUNTS = ("prompts", "wins", "ties", "losses", "disagreements", "unparsed")


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """How often a judge preferred the answers of a model, on one data set.

    More than 12 fields: it has the numbers of one comparison, all of which a page shows.

    Args:
        model: Name of the judge.
        against: The other answers: "reference", "teacher", "before", or the folder of another model.
        dataset: Name of the data set.
        prompts: Number of prompts with a judged pair of answers.
        wins, ties, losses: Numbers of judged pairs.  The judge sees a pair twice, with the answers exchanged.  If the two
            verdicts differ, the pair is a tie.
        disagreements: Number of ties whose two verdicts differ.
        unparsed: Number of pairs without a score, since a reply was neither "A", "B" nor "tie".
        score: Mean score in [0, 1]: a win is 1, a tie 0.5 and a loss 0.  None if no pair has a score.
        lower, upper: 95 % interval of `score`, by bootstrap over prompts; None without a score.
        by_prompt: Mean score of each prompt, by its id.
    """

    model: str
    against: str
    dataset: str
    prompts: int
    wins: int
    ties: int
    losses: int
    disagreements: int
    unparsed: int
    score: float | None
    lower: float | None
    upper: float | None
    by_prompt: Mapping[str, float]


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
    found = []
    for dataset, about in mapping(at(comparison, "datasets")).items():
        scores = mapping(at(about, "by_prompt")).items()
        found.append(
            Judgement(
                model=str(at(comparison, "model")),
                against=str(at(comparison, "against")),
                dataset=dataset,
                **{name: int(number(at(about, name)) or 0) for name in _COUNTS},
                score=number(at(about, "score")),
                lower=number(at(about, "lower")),
                upper=number(at(about, "upper")),
                by_prompt={name: score for name, value in scores if (score := number(value)) is not None},
            )
        )
    return found
