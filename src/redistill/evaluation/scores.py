"""What is evaluated, and how: the test protocol of the papers, and the validation that chooses a checkpoint."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from redistill.contracts import Example, Sampling, Teacher
from redistill.data.tokenize import TokenizeConfig, tokenize_prompts
from redistill.errors import CheckpointError, ConfigError, DataError
from redistill.evaluation.answers import Answerer, Gather, alone, response_scores, share
from redistill.evaluation.folder import RESPONSES, ProgressCall, Tally, Writer, claim, data_hash, model_hash
from redistill.evaluation.gold import gold_examples, gold_sums, token_means
from redistill.evaluation.metrics import METRICS
from redistill.models.load import parameter_bytes, parameter_count
from redistill.records import Metric, Record
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


def evaluate(
    model: nn.Module,
    tokenizer: Any,
    datasets: Mapping[str, Sequence[Record]],
    config: EvaluationConfig,
    tokenize_config: TokenizeConfig,
    folder: Path,
    *,
    label: str,
    metrics: Mapping[str, Sequence[Metric]],
    progress: ProgressCall | None = None,
    teacher: Teacher | None = None,
    vocabulary: int | None = None,
    shard: tuple[int, int] = (0, 1),
    gather: Gather = alone,
) -> dict[str, Any]:
    """Answer every prompt with every seed, score the answers, and write the evaluation folder.

    What an interrupted call has left in the folder is kept, if it was made with the same settings.

    Args:
        model, tokenizer: A causal language model, on its device.
        datasets: Records by name of the data set; each record has references and an id of its own.
        config, tokenize_config: How answers are drawn, and how prompts are made; an answer has at most `response_tokens`.
        folder: Where settings.json, responses/ and scores.json go.
        label: What the report calls this model, such as "student".
        metrics: What the answers to each data set are scored by, at least one metric each; the first is its primary one.
        progress: Told (answers done, answers in all, tokens written) of this process after every batch.
        teacher: For KL and agreement on the gold answers; None leaves them out.
        vocabulary: Classes shared with the teacher; None takes all of the model's.
        shard: This process's number and how many there are; of n processes each answers every n-th prompt.
        gather: Joins the processes' lists into one, known to all, as `signals.gather` does.

    Returns:
        What scores.json holds.  Each data set says under "metrics" which metrics it has, with their titles, units and
        directions.  eos_rate, distinct_1, distinct_2 and agreement are shares in [0, 1]; cross_entropy and kl (forward, from
        the teacher) are nats per gold token; lengths count the end token.

    What an interrupted call or one with other metrics has answered is not answered again; metrics that are new are computed
    from the answers.

    Raises:
        CheckpointError: the folder holds answers of another model or of other settings.
        DataError: a data set is empty, or a record of it has no reference or the id of another.
    """
    assert shard[1] == 1 or gather is not alone, "several processes need a gather"
    chosen = {name: _checked(name, list(records)[: config.limit]) for name, records in datasets.items()}
    prompts = {name: tokenize_prompts(records, tokenizer, tokenize_config) for name, records in chosen.items()}
    gather([])  # whether a signal has reached any process so far; from here on some may have nothing to do
    settings = _settings(model, label, config, tokenize_config, chosen, prompts)
    claim(folder, settings)
    shown = {name: {metric.name: metric.described for metric in metrics[name]} for name in chosen}
    finished = _finished(folder / SCORES, settings, shown, needs_kl=teacher is not None)
    if finished is not None:
        return finished
    answerer = Answerer(model, tokenizer, config.sampling, tokenize_config.response_tokens, config.batch_size, vocabulary)
    tally = Tally(progress, total=len(config.seeds) * sum(len(share(records, shard)) for records in chosen.values()))
    writer = Writer(answerer, tally, folder / RESPONSES, shard, gather)
    scores: dict[str, Any] = {}
    for name, records in chosen.items():
        by_seed = {}
        for seed in config.seeds:
            lines = writer.responses(name, records, prompts[name], seed, metrics[name])
            by_seed[str(seed)] = response_scores(lines, metrics[name])
        examples = share(gold_examples(records, tokenizer, tokenize_config), shard)
        sums = gather(gold_sums(model, teacher, examples, config.batch_size, vocabulary))
        about = {"prompts": len(records), "metrics": shown[name]}
        scores[name] = about | {"seeds": by_seed, "teacher_forced": token_means(sums)}
    speed = tally.tokens_per_s or _speed_before(folder / SCORES)
    result = _described(model, label) | {"tokens_per_s": speed, "settings": settings, "datasets": scores}
    if shard[0] == 0:
        files.write_json(folder / SCORES, result)
    return result


def _described(model: nn.Module, label: str) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "label": label,
        "model": type(model).__name__,
        "parameters": parameter_count(model),
        "bytes": parameter_bytes(model),
    }


def _settings(
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


def validation_scores(
    model: nn.Module,
    tokenizer: Any,
    records: Sequence[Record],
    examples: Sequence[Example],
    tokenize_config: TokenizeConfig,
    *,
    metrics: Sequence[Metric],
    seed: int,
    batch_size: int,
    teacher: Teacher | None = None,
    vocabulary: int | None = None,
    shard: tuple[int, int] = (0, 1),
    gather: Gather = alone,
) -> dict[str, float]:
    """Scores of the student as it is: one sampled answer a prompt, and its reading of the gold answers.

    Sampling is plain (T 1, nothing banned), as in the papers' model selection.  Every call draws with the same random numbers,
    so that two checkpoints differ by their weights and not by their luck.

    Args:
        model, tokenizer: A causal language model, on its device.
        records, examples: The validation prompts, and their gold sequences.
        tokenize_config: How prompts are made; an answer has at most `response_tokens`.
        metrics: What the answers are scored by.
        seed: The run's seed.
        batch_size, teacher, vocabulary, shard, gather: As for `evaluate`.

    Returns:
        What `response_scores` and `teacher_forced` return, in one dictionary.
    """
    assert shard[1] == 1 or gather is not alone, "several processes need a gather"
    mine = share(records, shard)
    prompts = tokenize_prompts(mine, tokenizer, tokenize_config)
    answerer = Answerer(model, tokenizer, Sampling(), tokenize_config.response_tokens, batch_size, vocabulary)
    lines = gather(answerer.lines("validation", mine, prompts, seed, metrics))
    sums = gather(gold_sums(model, teacher, share(examples, shard), batch_size, vocabulary))
    return response_scores(lines, metrics) | token_means(sums)


def _checked(dataset: str, records: Sequence[Record]) -> Sequence[Record]:
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


def _speed_before(path: Path) -> float | None:
    """Tokens per second of the call that wrote all answers, where this one has only computed scores again."""
    held = files.read_json(path) if path.exists() else {}
    return held.get("tokens_per_s")


def _finished(
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
