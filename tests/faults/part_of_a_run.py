"""A part of a run, for test_checkpoint.py: from its newest checkpoint until another is written.  torchrun starts it for two."""

import sys
from pathlib import Path
from typing import Any

import pytest

from redistill.config.run import load_config
from redistill.processes import signals
from redistill.runs.run import train_student
from redistill.training import loop as training


class Enough(KeyboardInterrupt):
    """The checkpoint is written."""


def train_until(recipe: Path, last: int, world: int) -> None:
    """Go on with the run of `recipe` until the checkpoint of the step `last`, with as many processes as are expected."""
    save = training.save_checkpoint

    def save_and_leave(parts: Any, settings: Any, state: Any) -> None:
        assert signals.num_processes() == world == parts.accelerator.num_processes
        save(parts, settings, state)
        if state.step == last:
            raise Enough

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Enough):
        patch.setattr(training, "save_checkpoint", save_and_leave)
        train_student(load_config(recipe))


if __name__ == "__main__":
    train_until(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
