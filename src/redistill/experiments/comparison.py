"""The headline numbers: each model on each data set, and how sure its difference to the reference model is."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from redistill.errors import DataError
from redistill.experiments.folders import Evaluation, RunFolder
from redistill.experiments.statistics import Interval, deviation, mean, paired_bootstrap, prompt_means

ROUGE = "rouge_l"
GENERATED = ("exact_match", "length_tokens", "eos_rate", "distinct_2")
TEACHER_FORCED = ("cross_entropy", "kl", "agreement")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model on one data set.

    Args:
        rouge_l: Mean over seeds, in [0, 100]; None where it was not measured.
        rouge_l_sd: Standard deviation over seeds; None with fewer than two.
        num_seeds: How many seeds it was measured with.
        interval: Difference to the reference model's ROUGE-L, over prompts; None where there is nothing to compare with.
        versus: The reference model's label; None for its own row.
        note: Why there is no interval, where one would be expected.
        scores: Means over seeds of the other scores, and the teacher-forced ones; exact match, EOS rate, distinct-2 and
            agreement are shares in [0, 1], cross entropy and KL are nats per token.
    """

    dataset: str
    model: str
    role: str
    rouge_l: float | None
    rouge_l_sd: float | None
    num_seeds: int
    num_prompts: int
    interval: Interval | None
    versus: str | None
    note: str
    scores: dict[str, float | None]


def evaluations(run: RunFolder, baselines: Sequence[RunFolder]) -> list[Evaluation]:
    """All models to show, in the order of the tables: teacher, student before, baselines, this run."""
    others = [replace(b.student, role="baseline") for b in baselines if b.student is not None]
    return [evaluation for evaluation in (run.teacher, run.before, *others, run.student) if evaluation is not None]


def dataset_names(models: Sequence[Evaluation]) -> list[str]:
    """Every data set that some model was measured on; this run's first."""
    return list(dict.fromkeys(name for model in reversed(models) for name in model.datasets))


def compare(models: Sequence[Evaluation]) -> list[Row]:
    """A row for each data set and model; differences are to the first baseline, else to the student before training."""
    return [row for dataset in dataset_names(models) for row in _rows(dataset, models)]


def _rows(dataset: str, models: Sequence[Evaluation]) -> Iterator[Row]:
    measured = [model for model in models if dataset in model.datasets]
    roles = [model.role for model in measured]
    reference = next((measured[roles.index(role)] for role in ("baseline", "before") if role in roles), None)
    for model in measured:
        rouge = model.seed_scores(dataset, ROUGE)
        interval, note = _difference(dataset, model, reference)
        generated = {name: mean(model.seed_scores(dataset, name)) for name in GENERATED}
        yield Row(
            dataset=dataset,
            model=model.label,
            role=model.role,
            rouge_l=mean(rouge),
            rouge_l_sd=deviation(rouge),
            num_seeds=len(rouge),
            num_prompts=model.num_prompts(dataset),
            interval=interval,
            versus=None if reference is None or model is reference else reference.label,
            note=note,
            scores={**generated, **{name: model.forced_score(dataset, name) for name in TEACHER_FORCED}},
        )


def _difference(dataset: str, model: Evaluation, reference: Evaluation | None) -> tuple[Interval | None, str]:
    if reference is None or model is reference:
        return None, ""
    ours, theirs = model.prompt_scores(dataset, ROUGE), reference.prompt_scores(dataset, ROUGE)
    if not ours or not theirs:
        return None, "no responses to compare"
    try:
        return paired_bootstrap(prompt_means(ours), prompt_means(theirs)), ""
    except DataError:
        return None, "different prompts"
