"""Configuration of training: duration, batch sizes and checkpoints."""

from dataclasses import dataclass
from typing import Literal

from redistill.errors import ConfigError
from redistill.training.lengths import check_length, in_updates
from redistill.vocab_pass import Compile


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Duration of training, batch sizes, precision, and checkpoints.

    Args:
        updates: Duration of training: a number of updates (optimiser steps), >= 1, or of epochs, such as "20 epochs".
        batch_size: Number of sequences in one update over all processes, >= 1.
        micro_batch_size: Maximum number of sequences in one forward and backward pass on one process, >= 1; gold and sampled
            sequences are counted separately.  If None, a micro-batch has at most as many tokens as saturate the device: with
            more tokens, the time per token would not decrease.
        precision: "fp32"; "tf32", which rounds the factors of fp32 matrix products to TensorFloat-32 on a GPU, and is "fp32" on
            a CPU; or "bf16" (autocast with fp32 master weights; logits and losses stay fp32).
        evaluate_every: Updates (or epochs) between validations, >= 0; 0 validates only before the first update and after the
            last.  The best checkpoint is chosen among the validations.
        choose_by: The metric by which the best checkpoint is chosen: a name in `evaluation.metrics`, "cross_entropy", or
            "acceptance" if `evaluation.teacher_forced` lists it.  If values are equal, the checkpoint with the lower cross
            entropy is chosen.  If these are equal as well, the later checkpoint is chosen.
        save_every: Updates (or epochs) between checkpoints, >= 0.  A checkpoint is also saved at each validation; 0 saves
            only at validations.
        keep: Number of newest checkpoints to keep, >= 1; the best checkpoint is kept in addition.
        patience: Validations without improvement before training stops, >= 1; if None, training never stops early.
        log_every: Updates between lines of progress if the output is not a terminal, >= 1.  Revisions (corrections of
            student text) are logged at the same updates.
        generation_batch_size: Sequences that one process generates or scores at once, >= 1; independent of the micro-batch.
        compile: What torch.compile compiles: "none"; "rows", the functions that compute loss terms from logits; or "all",
            these functions and the student without its head.  "auto" is "rows" if a compiler is installed and the
            vocabulary is large, and otherwise "none".

    Raises:
        ConfigError: a value is out of range.

    Example:
        >>> TrainingConfig(updates="2 epochs", batch_size=8).schedule(num_examples=1000).updates
        250
        >>> TrainingConfig(keep=0)
        Traceback (most recent call last):
            ...
        redistill.errors.ConfigError: keep = 0: must be >= 1
    """

    updates: int | str = 1000
    batch_size: int = 8
    micro_batch_size: int | None = None
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    evaluate_every: int | str = 0
    choose_by: str = "rouge_l"
    save_every: int | str = 0
    keep: int = 1
    patience: int | None = None
    log_every: int = 10
    generation_batch_size: int = 64
    compile: Compile = "auto"

    def __post_init__(self) -> None:
        for name in ("batch_size", "micro_batch_size", "keep", "patience", "log_every", "generation_batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} = {value}: must be >= 1")
        for name, lowest in {"updates": 1, "evaluate_every": 0, "save_every": 0}.items():
            check_length(name, getattr(self, name), lowest)

    def schedule(self, num_examples: int) -> "Schedule":
        """Return the schedule in updates, for a training set of `num_examples` examples."""
        lengths = self.updates, self.evaluate_every, self.save_every
        return Schedule(*(in_updates(length, num_examples, self.batch_size) for length in lengths))


@dataclass(frozen=True)
class Schedule:
    """Number of updates: of the run, between validations, and between checkpoints."""

    updates: int
    evaluate_every: int
    save_every: int
