"""Chooses batch sizes and dtypes with which a run fits into memory.

`redistill.estimate.estimate` computes how much memory a run needs.
"""

from collections.abc import Callable
from typing import NamedTuple

from redistill.config.run import Run
from redistill.estimate import Estimate
from redistill.estimate.draft import Draft, Setting, run_of

FRACTION = 0.8
"""Largest fraction of the memory that a run may need; the rest is for other programs and for errors of the estimate."""
MAX_ESTIMATES = 6
"""Maximum number of estimates, each of which computes an update."""

Measure = Callable[[Run], Estimate]


class Fitted(NamedTuple):
    """A draft of a recipe with its estimate.

    Args:
        draft: The settings.
        estimate: Parameters, memory and time with these settings.
        fits: Whether the run needs at most `FRACTION` of the memory.
    """

    draft: Draft
    estimate: Estimate
    fits: bool


def fitted(draft: Draft, memory_bytes: int, measure: Measure, report: Callable[[str], None]) -> Fitted:
    """Change a draft until its run fits into the memory.

    First, the dtype of models that are not trained is changed to bfloat16. Each later change concerns the phase that needs the
    most memory: a smaller micro-batch, activation checkpointing, or a smaller batch for generation or validation.

    Args:
        draft: The settings.
        memory_bytes: Memory of the device.
        measure: Function that estimates a run, such as `redistill.estimate.estimate`.
        report: Function that is called with a line of text before each estimate.

    Raises:
        ConfigError, ModelError: the recipe or a model cannot be used.
    """
    for number in range(1, MAX_ESTIMATES + 1):
        report(f"estimating memory and time ({number}): one update and one validation with few layers")
        found = measure(run_of(draft))
        fits = found.memory.peak_bytes <= FRACTION * memory_bytes
        why = f"{found.memory.peak_bytes / 1e9:.1f} of {memory_bytes / 1e9:.1f} GB would be needed otherwise"
        changes = {} if fits or number == MAX_ESTIMATES else smaller(draft, found, why)
        if not changes:
            break
        draft = {**draft, **changes}
    return Fitted(draft, found, fits)


def smaller(draft: Draft, found: Estimate, why: str) -> dict[str, Setting]:
    """Return the next change that reduces the memory of a run; empty if there is none.

    Args:
        draft: The settings.
        found: The estimate with these settings.
        why: Reason for the change, which is written into the recipe as a comment.
    """
    for path in ("teacher.dtype", "student.dtype"):  # that of a trained student is not in the draft
        if path in draft and draft[path].value == "float32":
            return {path: Setting("bfloat16", why)}
    phase = max(found.memory.phases, key=found.memory.phases.__getitem__)
    path = {
        "learn": "training.micro_batch_size",
        "write": "training.generation_batch_size",
        "validate": "evaluation.batch_size",
    }[phase]
    size = draft[path].value if path in draft else draft["training.batch_size"].value
    assert isinstance(size, int)
    if size > 1:
        return {path: Setting(max(1, size // 4), why)}
    if phase == "learn" and "student.gradient_checkpointing" not in draft:
        return {"student.gradient_checkpointing": Setting(True, why)}
    return {}
