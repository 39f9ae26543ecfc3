"""The evaluator: a model's answers on test sets with their scores, and the validation that chooses a checkpoint.

Each batch of answers is written to disk when it is generated, so that an interrupted evaluation resumes.  Random numbers are
keyed by (evaluation seed, data set, record), so that no answer depends on batches, processes or interruptions.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from redistill.contracts import ONE_PROCESS, Engine, Example, Processes, Sampling, Teacher
from redistill.data.tokenize import TokenizeConfig, tokenize_prompts
from redistill.evaluation.answers import Answerer, part, response_scores
from redistill.evaluation.folder import RESPONSES, ProgressCall, ResponseFiles, Tally, check_settings
from redistill.evaluation.gold import gold_examples, gold_sums, token_means
from redistill.evaluation.scores import (
    SCORES,
    EvaluationConfig,
    checked,
    described,
    finished,
    settings,
    speed_before,
)
from redistill.generation.local import LocalEngine
from redistill.models.load import end_token_ids
from redistill.processes.memory import Halving
from redistill.records import Metric, Record
from redistill.storage import files


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Evaluates one model: the student of a run, or any other.

    Args:
        model: A causal language model, on its device.
        tokenizer: Its tokenizer.
        engine: Generates the answers with the model's weights.
        config: How answers are sampled.
        tokens: How prompts are tokenised; an answer has at most `response_tokens` tokens.
        teacher: Used for KL and agreement on the gold answers; None omits them.
        vocabulary: Number of classes shared with the teacher; None uses all of the model's.
        processes: Each process answers a part of the prompts.
        autocast: Returns the autocast context that the model runs in.
    """

    model: nn.Module
    tokenizer: Any
    engine: Engine
    config: EvaluationConfig
    tokens: TokenizeConfig
    teacher: Teacher | None = None
    vocabulary: int | None = None
    processes: Processes = ONE_PROCESS
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext

    def evaluate(
        self,
        datasets: Mapping[str, Sequence[Record]],
        folder: Path,
        *,
        label: str,
        metrics: Mapping[str, Sequence[Metric]],
        progress: ProgressCall | None = None,
    ) -> dict[str, Any]:
        """Answer every prompt with every seed, score the answers, and write the evaluation folder.

        Answers of an interrupted call, or of a call with other metrics, are reused if the settings are the same.

        Args:
            datasets: Records by name of the data set; each record has references and a unique id.
            folder: The evaluation folder, for settings.json, responses/ and scores.json.
            label: Name of this model in the report, such as "student".
            metrics: Metrics by name of the data set, at least one each; the first is its primary metric.
            progress: Called with (answers done, total answers, tokens generated) of this process after every batch.

        Returns:
            The content of scores.json.  Each data set lists under "metrics" its metrics with titles, units and directions.
            eos_rate, distinct_1, distinct_2 and agreement are fractions in [0, 1]; cross_entropy and kl (forward, from the
            teacher) are nats per gold token; lengths include the end token.

        Raises:
            CheckpointError: the folder contains answers of another model or of other settings.
            DataError: a data set is empty, or one of its records has no reference or a duplicate id.
        """
        config = self.config
        chosen = {name: checked(name, list(records)[: config.limit]) for name, records in datasets.items()}
        prompts = {name: tokenize_prompts(records, self.tokenizer, self.tokens) for name, records in chosen.items()}
        self.processes.gather([])  # barrier that reports signals; after it, some processes may have no answers to generate
        mine = settings(self.model, label, config, self.tokens, chosen, prompts)
        check_settings(folder, mine)
        shown = {name: {metric.name: metric.described for metric in metrics[name]} for name in chosen}
        held = finished(folder / SCORES, mine, shown, needs_kl=self.teacher is not None)
        if held is not None:
            return held
        tally = Tally(progress, len(config.seeds) * sum(len(part(records, self.processes)) for records in chosen.values()))
        responses = ResponseFiles(self._answerer(config.sampling), tally, folder / RESPONSES, self.processes, config.batch_size)
        scores: dict[str, Any] = {}
        with self.autocast():
            for name, records in chosen.items():
                by_seed = {
                    str(seed): response_scores(
                        responses.complete(name, records, prompts[name], seed, metrics[name]), metrics[name]
                    )
                    for seed in config.seeds
                }
                forced = self._teacher_forced(gold_examples(records, self.tokenizer, self.tokens))
                about = {"prompts": len(records), "metrics": shown[name]}
                scores[name] = about | {"seeds": by_seed, "teacher_forced": forced}
        speed = tally.tokens_per_s or speed_before(folder / SCORES)
        result = described(self.model, label) | {"tokens_per_s": speed, "settings": mine, "datasets": scores}
        if self.processes.is_main:
            files.write_json(folder / SCORES, result)
        return result

    def validate(
        self, records: Sequence[Record], examples: Sequence[Example], *, metrics: Sequence[Metric], seed: int
    ) -> dict[str, float]:
        """Scores of the current model: of one sampled answer per prompt, and teacher-forced on the gold answers.

        Sampling uses temperature 1, all classes and no n-gram blocking, as in the papers' model selection.  Every call uses the
        same random numbers, so that two checkpoints differ only in their weights.

        Args:
            records, examples: The validation prompts, and their gold sequences.
            metrics: Metrics of the answers.
            seed: The run's seed.

        Returns:
            The results of `response_scores` and `teacher_forced`, in one dictionary.
        """
        mine = part(records, self.processes)
        prompts = tokenize_prompts(mine, self.tokenizer, self.tokens)
        with self.autocast():
            answers = self._answerer(Sampling()).lines("validation", mine, prompts, seed, metrics)
            return response_scores(self.processes.gather(answers), metrics) | self._teacher_forced(examples)

    def _answerer(self, sampling: Sampling) -> Answerer:
        end_ids = end_token_ids(self.model, self.tokenizer)
        return Answerer(self.engine, self.tokenizer, sampling, self.tokens.response_tokens, end_ids)

    def _teacher_forced(self, examples: Sequence[Example]) -> dict[str, float]:
        """Teacher-forced scores of gold sequences; each process computes a part of them."""
        mine = part(examples, self.processes)
        sums = gold_sums(self.model, self.teacher, mine, self.config.batch_size, self.vocabulary)
        return token_means(self.processes.gather(sums))


def build_local_engine(
    model: nn.Module, tokenizer: Any, config: EvaluationConfig, vocabulary: int | None = None
) -> LocalEngine:
    """An engine that generates answers with `model` in this process."""
    return LocalEngine(
        model,
        vocabulary=vocabulary,
        end_ids=end_token_ids(model, tokenizer),
        pad_id=tokenizer.pad_token_id or 0,
        batch_size=Halving("evaluation.batch_size", config.batch_size),
    )
