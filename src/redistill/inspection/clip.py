"""`redistill inspect clip`: the classes that DAC-KL keeps for one token."""

from dataclasses import dataclass

from redistill.errors import ConfigError
from redistill.inspection.subject import Subject, check_row, opened
from redistill.losses.dac_kl import DacKLConfig
from redistill.runs.windows import Window, window_at


@dataclass(frozen=True, kw_only=True)
class Clip:
    """The window of DAC-KL for one target token of an answer.

    Args:
        student: Where the student's weights come from, such as "checkpoint step-40".
        window: The window.
    """

    student: str
    window: Window

    def as_json(self) -> dict[str, object]:
        """Return the window as JSON values."""
        return {"student": self.student, **self.window.as_json()}


def inspect_clip(subject: Subject, row: int, position: int, *, top: int, step: int | None = None) -> Clip:
    """Return the window of DAC-KL at one target of a gold answer.

    Args:
        subject: The run or recipe; its divergence is DAC-KL.
        row: Index of the training example, from 0.
        position: Index of the target (a token of the answer), from 0.
        top: Maximum number of kept classes to return, and maximum number of other classes.
        step: Number of updates of the checkpoint to use; None for the newest one.

    Raises:
        ConfigError: the divergence is not DAC-KL, or there is no such example or target.
        CheckpointError: the checkpoint does not exist, or the run has no checkpoint with the network of DAC-KL.
    """
    divergence = subject.config.resolved_method.objective.divergence
    if not isinstance(divergence, DacKLConfig):
        raise ConfigError(f"{subject.name}: objective.divergence: must be dac_kl; use a run of the method mgsr")
    data = subject.data(subject.tokenizer())
    check_row(subject, row, len(data[1].train))
    example = data[1].train[row]
    if position >= sum(example.supervised):
        raise ConfigError(
            f"{subject.name}: --position {position}: the answer of row {row} has {sum(example.supervised)} tokens; choose a "
            "smaller position"
        )
    with opened(subject, data, step) as found:
        if divergence.has_network and found.student == "trained student":
            raise ConfigError(
                f"{subject.name}: has no checkpoint with the network of DAC-KL; repeat the run, or name the recipe instead of "
                "the run folder"
            )
        return Clip(student=found.student, window=window_at(found.run, row, position, top))
