"""Configuration of training: duration, batch sizes and checkpoints."""

import math
import re
from dataclasses import dataclass
from typing import Literal

from redistill.errors import ConfigError
from redistill.vocab_pass import Compile

_EPOCHS = re.compile(r"(\d+(?:\.\d+)?) epochs?")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Duration of training, batch sizes, precision, and checkpoints.

    Args:
        updates: Duration of training: a number of updates (optimiser steps), >= 1, or of epochs, such as "20 epochs".
        batch_size: Number of sequences in one update over all processes, >= 1.
        micro_batch_size: Maximum number of sequences in one forward and backward pass on one process, >= 1.  Gold and
            sampled sequences are counted separately.  If None, the number of tokens is limited instead, to a number above
            which the time per token does not decrease.
        precision: "fp32", or "bf16" (autocast with fp32 master weights; logits and losses stay fp32).
        evaluate_every: Updates (or epochs) between validations, >= 0; 0 validates only before the first update and after
            the last.  The best checkpoint is the one with the best validation.
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
    precision: Literal["fp32", "bf16"] = "fp32"
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


def check_length(name: str, length: int | str, lowest: int) -> None:
    """Check that the setting `name` is a valid number of updates or of epochs.

    `length` is the value of the setting: an integer >= `lowest`, or a text such as "20 epochs" with a number > 0.

    Raises:
        ConfigError: the length is neither a valid number of updates nor a valid number of epochs.
    """
    if isinstance(length, int):
        if length < lowest:
            raise ConfigError(f"{name} = {length}: must be >= {lowest}")
    elif not (match := _EPOCHS.fullmatch(length)) or not 0 < float(match[1]) < math.inf:
        raise ConfigError(f"{name} = {length!r}: must be a whole number of updates, or epochs such as '20 epochs'")


def longer(length: object, other: object) -> bool | None:
    """Return whether a length of training is larger than another.

    Each length is a value of `training.updates`.  The result is None if the two cannot be compared: one of them is a number of
    updates and the other a number of epochs, or one is not a valid length.

    Example:
        >>> longer(200, 100), longer("3 epochs", "5 epochs"), longer(200, "5 epochs")
        (True, False, None)
    """
    if isinstance(length, int) and isinstance(other, int):
        return length > other
    matches = [_EPOCHS.fullmatch(each) if isinstance(each, str) else None for each in (length, other)]
    epochs = [float(match[1]) for match in matches if match]
    return epochs[0] > epochs[1] if len(epochs) == 2 else None


def in_updates(length: int | str, num_examples: int, batch_size: int) -> int:
    """Convert the value of a setting, in updates or epochs, to a number of updates.

    A value in epochs gives at least 1 update.

    Example:
        >>> in_updates(50, 1000, 8), in_updates("2 epochs", 1000, 8)
        (50, 250)
    """
    if isinstance(length, int):
        return length
    match = _EPOCHS.fullmatch(length)
    assert match is not None, length
    return max(1, int(float(match[1]) * num_examples / batch_size))
