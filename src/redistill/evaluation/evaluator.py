"""The one place that evaluates: a model's answers on test sets, and the validation that chooses a checkpoint.

Answers are on disk as soon as a batch of them is generated, so that an interrupted evaluation resumes.  An answer's randomness
belongs to (evaluation seed, data set, record), so that no answer depends on batches, processes or interruptions.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from redistill.contracts import ONE_PROCESS, Engine, Example, Processes, Sampling, Teacher
from redistill.data.tokenize import TokenizeConfig, tokenize_prompts
from redistill.evaluation.answers import Answerer, response_scores, share
from redistill.evaluation.folder import RESPONSES, ProgressCall, Tally, Writer, claim
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
        tokens: How prompts are made; an answer has at most `response_tokens`.
        teacher: For KL and agreement on the gold answers; None leaves them out.
        vocabulary: Classes shared with the teacher; None takes all of the model's.
        processes: Each process answers a part of the prompts.
        autocast: Makes the context that the model runs in.
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

        Answers of an interrupted call, or of one with other metrics, are kept if it had the same settings.

        Args:
            datasets: Records by name of the data set; each record has references and an id of its own.
            folder: Where settings.json, responses/ and scores.json are written.
            label: What the report calls this model, such as "student".
            metrics: By data set, what its answers are scored by, at least one metric each; the first is its primary one.
            progress: Called with (answers done, answers in all, tokens generated) of this process after every batch.

        Returns:
            What scores.json holds.  Each data set lists under "metrics" its metrics with titles, units and directions.
            eos_rate, distinct_1, distinct_2 and agreement are fractions in [0, 1]; cross_entropy and kl (forward, from the
            teacher) are nats per gold token; lengths count the end token.

        Raises:
            CheckpointError: the folder holds answers of another model or of other settings.
            DataError: a data set is empty, or a record of it has no reference or the id of another.
        """
        config = self.config
        chosen = {name: checked(name, list(records)[: config.limit]) for name, records in datasets.items()}
        prompts = {name: tokenize_prompts(records, self.tokenizer, self.tokens) for name, records in chosen.items()}
        self.processes.gather([])  # barrier that reports signals; from here on some processes may have nothing to do
        mine = settings(self.model, label, config, self.tokens, chosen, prompts)
        claim(folder, mine)
        shown = {name: {metric.name: metric.described for metric in metrics[name]} for name in chosen}
        held = finished(folder / SCORES, mine, shown, needs_kl=self.teacher is not None)
        if held is not None:
            return held
        tally = Tally(progress, len(config.seeds) * sum(len(share(records, self.processes)) for records in chosen.values()))
        writer = Writer(self._answerer(config.sampling), tally, folder / RESPONSES, self.processes, config.batch_size)
        scores: dict[str, Any] = {}
        with self.autocast():
            for name, records in chosen.items():
                by_seed = {
                    str(seed): response_scores(
                        writer.responses(name, records, prompts[name], seed, metrics[name]), metrics[name]
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
        """Scores of the model as it is: one sampled answer a prompt, and its reading of the gold answers.

        Sampling is plain (temperature 1, nothing banned), as in the papers' model selection.  Every call uses the same random
        numbers, so that two checkpoints differ by their weights alone.

        Args:
            records, examples: The validation prompts, and their gold sequences.
            metrics: What the answers are scored by.
            seed: The run's seed.

        Returns:
            What `response_scores` and `teacher_forced` return, in one dictionary.
        """
        mine = share(records, self.processes)
        prompts = tokenize_prompts(mine, self.tokenizer, self.tokens)
        with self.autocast():
            answers = self._answerer(Sampling()).lines("validation", mine, prompts, seed, metrics)
            return response_scores(self.processes.gather(answers), metrics) | self._teacher_forced(examples)

    def _answerer(self, sampling: Sampling) -> Answerer:
        end_ids = end_token_ids(self.model, self.tokenizer)
        return Answerer(self.engine, self.tokenizer, sampling, self.tokens.response_tokens, end_ids)

    def _teacher_forced(self, examples: Sequence[Example]) -> dict[str, float]:
        """How the model reads gold sequences; each process reads a part of them."""
        part = share(examples, self.processes)
        sums = gold_sums(self.model, self.teacher, part, self.config.batch_size, self.vocabulary)
        return token_means(self.processes.gather(sums))


def local_engine(model: nn.Module, tokenizer: Any, config: EvaluationConfig, vocabulary: int | None = None) -> LocalEngine:
    """The engine of a model that generates its own answers."""
    return LocalEngine(
        model,
        vocabulary=vocabulary,
        end_ids=end_token_ids(model, tokenizer),
        pad_id=tokenizer.pad_token_id or 0,
        batch_size=Halving("evaluation.batch_size", config.batch_size),
    )
