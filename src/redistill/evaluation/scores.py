"""What is evaluated, and how: the test protocol of the papers, and the validation that chooses a checkpoint."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from redistill.contracts import Sampling
from redistill.data.tokenize import TokenizeConfig
from redistill.errors import CheckpointError, ConfigError, DataError
from redistill.evaluation.folder import data_hash, model_hash
from redistill.evaluation.metrics import METRICS
from redistill.models.load import parameter_bytes, parameter_count
from redistill.records import Record
from redistill.storage import files

SCHEMA = 1
SCORES = "scores.json"


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How test answers are drawn; the defaults are the protocol of the papers.

    Args:
        seeds: Each gives one answer a prompt; scores are averaged over them.
        temperature: >= 0; 0 takes the arg max.
        top_p: Smallest set of classes whose mass reaches this, in (0, 1]; 1 keeps all.
        top_k: The k most probable classes; 0 keeps all.
        no_repeat_ngram: An n-gram of this length that stands in prompt + answer already is not repeated; 0 allows all.
        batch_size: Prompts at a time; no answer depends on it.
        limit: Only the first so many prompts of each data set; None takes all.
        compare: Which models are evaluated besides the student: its teacher, and the student before training.
        metrics: What answers to test sets and to validation prompts are scored by: names of `redistill methods`, or
            `module:NAME` for a metric of your own. A test set with metrics of its own has those first. The first metric of a
            test set is the one that models are ranked and tested by.

    Raises:
        ConfigError: a value out of range.
    """

    seeds: tuple[int, ...] = (10, 20, 30, 40, 50)
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    no_repeat_ngram: int = 6
    batch_size: int = 16
    limit: int | None = None
    compare: tuple[Literal["teacher", "before"], ...] = ("teacher", "before")
    metrics: tuple[str, ...] = tuple(METRICS)

    def __post_init__(self) -> None:
        if not self.metrics or len(set(self.metrics)) < len(self.metrics):
            raise ConfigError(f"metrics = {list(self.metrics)}: must be at least one, and all different")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(
                f"seeds = {list(self.seeds)}: must be at least one, and all different; the papers use 10, 20, ... 50"
            )
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p = {self.top_p}: must lie in (0, 1]; 1 keeps all classes")
        least = {"temperature": 0, "top_k": 0, "no_repeat_ngram": 0, "batch_size": 1, "limit": 1}
        for name, lowest in least.items():
            value = getattr(self, name)
            if value is not None and not lowest <= value < math.inf:
                raise ConfigError(f"{name} = {value}: must be >= {lowest}")

    @property
    def sampling(self) -> Sampling:
        return Sampling(temperature=self.temperature, top_p=self.top_p, top_k=self.top_k, no_repeat_ngram=self.no_repeat_ngram)


def described(model: nn.Module, label: str) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "label": label,
        "model": type(model).__name__,
        "parameters": parameter_count(model),
        "bytes": parameter_bytes(model),
    }


def settings(
    model: nn.Module,
    label: str,
    config: EvaluationConfig,
    tokenize_config: TokenizeConfig,
    records: Mapping[str, Sequence[Record]],
    prompts: Mapping[str, Sequence[tuple[int, ...]]],
) -> dict[str, Any]:
    """All that an answer depends on; the batch size is not of it, and neither are metrics, which read answers."""
    sampling = asdict(config.sampling)
    del sampling["teacher_share"]  # an answer is sampled from one model
    return {
        "schema": SCHEMA,
        "label": label,
        "model": model_hash(model),
        "sampling": sampling,
        "seeds": list(config.seeds),
        "limit": config.limit,
        "tokens": asdict(tokenize_config),
        "datasets": {name: data_hash(records[name], prompts[name]) for name in records},
    }


def checked(dataset: str, records: Sequence[Record]) -> Sequence[Record]:
    if files.slug(dataset) != dataset:
        raise ConfigError(f"data set '{dataset}': becomes part of a file's name; use letters, digits, '.', '_' and '-' only")
    if not records:
        raise DataError(f"{dataset}: no prompts; give a data set with at least one row")
    ids: set[str] = set()
    for record in records:
        if not record.references:
            raise DataError(f"{dataset}: {record.record_id}: no reference to compare an answer with; leave the row out")
        if record.record_id in ids:
            raise DataError(
                f"{dataset}: two rows have the id '{record.record_id}'; answers are kept by id, so make them differ"
            )
        ids.add(record.record_id)
    return records


def speed_before(path: Path) -> float | None:
    """Tokens per second of the call that wrote all answers, where this one has only computed scores again."""
    held = files.read_json(path) if path.exists() else {}
    return held.get("tokens_per_s")


def finished(
    path: Path, settings: dict[str, Any], metrics: Mapping[str, Mapping[str, Any]], *, needs_kl: bool
) -> dict[str, Any] | None:
    """The scores of an earlier call with the same settings, if they have all that is asked for."""
    if not path.exists():
        return None
    held: dict[str, Any] = files.read_json(path)
    try:
        forced = [scores["teacher_forced"] for scores in held["datasets"].values()]
        has_kl = all("kl" in means for means in forced if means)  # a set without gold sequences has nothing to ask a teacher
        same_metrics = metrics == {name: found.get("metrics") for name, found in held["datasets"].items()}
        return held if held["settings"] == settings and same_metrics and (has_kl or not needs_kl) else None
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: holds no scores of an evaluation; remove it, and they are counted anew") from error
