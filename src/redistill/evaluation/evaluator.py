"""The one place that evaluates: a model's answers on test sets, and the validation that chooses a checkpoint."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from redistill.contracts import ONE_PROCESS, Example, Processes, Teacher
from redistill.data.tokenize import TokenizeConfig
from redistill.evaluation import scores
from redistill.evaluation.folder import ProgressCall
from redistill.evaluation.scores import EvaluationConfig
from redistill.records import Metric, Record


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Evaluates one model, the student of a run or any other.

    Args:
        model: A causal language model, on its device.
        tokenizer: Its tokenizer.
        config: How answers are drawn.
        tokens: How prompts are made; an answer has at most `response_tokens`.
        teacher: For KL and agreement on the gold answers; None leaves them out.
        vocabulary: Classes shared with the teacher; None takes all of the model's.
        processes: Each process answers a part of the prompts.
        autocast: Makes the context that the model runs in.
    """

    model: nn.Module
    tokenizer: Any
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
        """See `scores.evaluate`."""
        with self.autocast():
            return scores.evaluate(
                self.model,
                self.tokenizer,
                datasets,
                self.config,
                self.tokens,
                folder,
                label=label,
                metrics=metrics,
                progress=progress,
                teacher=self.teacher,
                vocabulary=self.vocabulary,
                shard=(self.processes.rank, self.processes.world),
                gather=self.processes.gather,
            )

    def validate(
        self, records: Sequence[Record], examples: Sequence[Example], *, metrics: Sequence[Metric], seed: int
    ) -> dict[str, float]:
        """See `scores.validation_scores`."""
        with self.autocast():
            return scores.validation_scores(
                self.model,
                self.tokenizer,
                records,
                examples,
                self.tokens,
                metrics=metrics,
                seed=seed,
                batch_size=self.config.batch_size,
                teacher=self.teacher,
                vocabulary=self.vocabulary,
                shard=(self.processes.rank, self.processes.world),
                gather=self.processes.gather,
            )
