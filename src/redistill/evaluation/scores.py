"""Settings of evaluation, and the contents of settings.json and scores.json."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from torch import nn

from redistill.contracts import TEMPERATURES, Sampling, is_temperature
from redistill.data.tokenize import TokenizeConfig
from redistill.errors import CheckpointError, ConfigError, DataError
from redistill.evaluation.answers import Row
from redistill.evaluation.decodings import Decoding, check_decodings
from redistill.evaluation.folder import data_hash, model_hash
from redistill.evaluation.measurements import MeasureConfig
from redistill.evaluation.metrics import DEFAULT
from redistill.models.load import parameter_bytes, parameter_count
from redistill.records import Json, Record
from redistill.storage import files

SCHEMA = 1
SCORES = "scores.json"


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How test answers are sampled and scored; the defaults follow the literature.

    Args:
        seeds: Seeds of evaluation, at least one and all different.  With each seed, one answer to each prompt is sampled.
            Scores are means over the seeds.
        temperature: Sampling temperature, >= 0; 0 is greedy decoding.
        top_p: Nucleus sampling keeps the smallest set of most probable tokens with at least this total probability, in (0, 1];
            1 keeps all.
        top_k: Number of most probable tokens that sampling keeps, >= 0; 0 keeps all.
        no_repeat_ngram: Length of n-grams that may occur only once in prompt and answer together, >= 0; 0 disables the limit.
        batch_size: Prompts answered in one batch, >= 1; answers do not depend on it.
        limit: Maximum number of prompts of each data set, >= 1; the first prompts are used.  If None, all prompts are used.
        compare: Models that are evaluated in addition to the student: "teacher", and "before" (the student before
            training).
        metrics: Metrics of answers to test sets and to validation prompts: names that `redistill methods` lists, or
            `module:NAME` for a metric of your own.  If a test set has metrics of its own, these come first.  The first
            metric of a test set is its primary metric, by which models are ranked and significance is tested.
        decodings: Further decodings with which the trained student answers the test sets.  Each uses the first two of `seeds`;
            greedy decoding uses only the first.  If a decoding samples and there is only one seed, a note is printed.
            scores.json, reports and comparisons show the scores of all decodings side by side.  Models are ranked by the main
            decoding, which is set by the fields above.
        teacher_forced: Further scores on gold answers, in validation and on test sets.  "acceptance": probabilities that the
            teacher accepts tokens that the student proposes as the draft model of speculative decoding (docs/methods/draft.md).
            "calibration": `ece`, the expected calibration error of the most probable token, in [0, 1].  "entropy":
            `student_entropy` and `teacher_entropy`, in nats per token.  "overlap": `top_overlap`, the fraction of the teacher's
            10 most probable tokens that are among the student's 10 most probable tokens.
        measure: What is measured on a sample of the test prompts: latency, memory, and divergences by token.

    Raises:
        ConfigError: a value is out of range.

    Example:
        >>> EvaluationConfig(seeds=(10,), temperature=0.0).sampling.no_repeat_ngram
        6
        >>> EvaluationConfig(seeds=(10, 10))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        redistill.errors.ConfigError: seeds = [10, 10]: must have at least one entry and no duplicates;...
    """

    seeds: tuple[int, ...] = (10, 20, 30, 40, 50)
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    no_repeat_ngram: int = 6
    batch_size: int = 16
    limit: int | None = None
    compare: tuple[Literal["teacher", "before"], ...] = ("teacher", "before")
    metrics: tuple[str, ...] = DEFAULT
    decodings: tuple[Decoding, ...] = ()
    teacher_forced: tuple[Literal["acceptance", "calibration", "entropy", "overlap"], ...] = ()
    measure: MeasureConfig = field(default_factory=MeasureConfig)

    def __post_init__(self) -> None:
        for name, hint in (("metrics", ""), ("seeds", "; the papers use 10, 20, ... 50")):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ConfigError(f"{name} = {list(values)}: must have at least one entry and no duplicates{hint}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p = {self.top_p}: must lie in (0, 1]; 1 keeps all tokens")
        check_decodings(self.decodings)
        for name, lowest in {"temperature": 0, "top_k": 0, "no_repeat_ngram": 0, "batch_size": 1, "limit": 1}.items():
            value = getattr(self, name)
            if value is not None and not lowest <= value < math.inf:
                raise ConfigError(f"{name} = {value}: must be >= {lowest}")
        if not is_temperature(self.temperature):
            raise ConfigError(f"temperature = {self.temperature}: must be {TEMPERATURES}")

    @property
    def sampling(self) -> Sampling:
        """How the tokens of test answers are sampled."""
        return Sampling(temperature=self.temperature, top_p=self.top_p, top_k=self.top_k, no_repeat_ngram=self.no_repeat_ngram)


def described(model: nn.Module, label: str) -> dict[str, Json]:
    """Return the beginning of scores.json, which describes the model.

    The result has the schema number, and the model's label, class, number of parameters and size in bytes.
    """
    return {
        "schema": SCHEMA,
        "label": label,
        "model": type(model).__name__,
        "parameters": parameter_count(model),
        "bytes": parameter_bytes(model),
    }


def settings(
    model: nn.Module, label: str, config: EvaluationConfig, tokens: TokenizeConfig, datasets: Mapping[str, Sequence[Row]]
) -> dict[str, Json]:
    """Return all settings that an answer depends on, as stored in settings.json.

    The batch size and the metrics are not included, because no answer depends on them.
    """
    sampling = asdict(config.sampling)
    del sampling["teacher_share"], sampling["teacher_top_k"]  # answers are sampled from one model
    return {
        "schema": SCHEMA,
        "label": label,
        "model": model_hash(model),
        "sampling": sampling,
        "seeds": list(config.seeds),
        "limit": config.limit,
        "tokens": asdict(tokens),
        "datasets": {name: data_hash(rows) for name, rows in datasets.items()},
    }


def checked(dataset: str, records: Sequence[Record]) -> Sequence[Record]:
    """Check the name, references and ids of a data set, and return its records.

    Raises:
        ConfigError: the name has characters that file names must not have.
        DataError: there is no record, or a record has no reference or a duplicate id.
    """
    if files.slug(dataset) != dataset:
        raise ConfigError(f"data set '{dataset}': the name is part of file names; use only letters, digits, '.', '_' and '-'")
    if not records:
        raise DataError(f"{dataset}: has no prompts; use a data set with at least one row")
    ids: set[str] = set()
    for record in records:
        if not record.references:
            raise DataError(f"{dataset}: {record.record_id}: has no reference to compare answers with; remove the row")
        if record.record_id in ids:
            raise DataError(f"{dataset}: two rows have the id '{record.record_id}': ids must be unique; change one of them")
        ids.add(record.record_id)
    return records


def earlier_scores(
    path: Path,
    settings: Mapping[str, Json],
    metrics: Mapping[str, object],
    *,
    forced: Sequence[str],
    decodings: Mapping[str, Sequence[int]],
) -> tuple[dict[str, Any], bool]:
    """Return the scores in the file `path`, and whether they can be reused unchanged.

    The scores can be reused if they have the given settings and metrics, and if they include the teacher-forced scores
    `forced` and all given decodings.  Each decoding must have exactly the given seeds.  If the file is missing, the result
    is ({}, False).

    Raises:
        CheckpointError: the content of the file is not that of scores.json.
    """
    if not path.exists():
        return {}, False
    held = cast("dict[str, Any]", files.read_json(path))
    try:
        means = [scores["teacher_forced"] for scores in held["datasets"].values()]
        has_forced = all(name in found for found in means if found for name in forced)  # empty for a set without gold sequences
        same_metrics = metrics == {name: found.get("metrics") for name, found in held["datasets"].items()}
        wanted = {name: {str(seed) for seed in seeds} for name, seeds in decodings.items()}
        has_decodings = all(
            found.get("decodings", {}).get(name, {}).get("seeds", {}).keys() == seeds
            for found in held["datasets"].values()
            for name, seeds in wanted.items()
        )
        is_complete = same_metrics and has_decodings and has_forced
        return held, held["settings"] == settings and is_complete
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: has no scores of an evaluation; remove the file to compute them again") from error
