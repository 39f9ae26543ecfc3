"""The choice of settings that fit into the memory: laws over every pair of memory and phase."""

import pytest

from redistill.config.run import Run
from redistill.estimate import Estimate, Memory, Seconds
from redistill.estimate.draft import Setting, recipe_text, run_of
from redistill.estimate.fitting import FRACTION, MAX_ESTIMATES, fitted

DRAFT = {
    "name": Setting("r", "a name"),
    "method": Setting("gkd", "a method"),
    "teacher.model": Setting("t", "a teacher"),
    "teacher.dtype": Setting("float32", "a dtype"),
    "student.model": Setting("s", "a student"),
    "student.finetune": Setting({"updates": 3}, "a hint", is_hint=True),
    "training.batch_size": Setting(8, "a batch"),
    "training.generation_batch_size": Setting(64, "texts"),
    "evaluation.batch_size": Setting(16, "prompts"),
}


def measured(run: Run, phase: str) -> Estimate:
    """An estimate whose memory is proportional to the batch size of one phase."""
    training = run.training
    learn = training.micro_batch_size or training.batch_size
    sizes = {
        "learn": learn * (1 if run.student.gradient_checkpointing else 2),
        "write": training.generation_batch_size,
        "validate": run.evaluation.batch_size,
    }
    weights = 20 if run.teacher.dtype == "float32" else 10
    phases = {name: weights + (size if name == phase else 0) for name, size in sizes.items()}
    return Estimate(
        parameters={"student": 1},
        memory=Memory(parts={}, phases=phases),
        seconds=Seconds(parts={}, validation=0.0),
        updates=1,
        validations=2,
        notes=(),
    )


@pytest.mark.parametrize("memory", [5, 13, 15, 20, 30, 40, 100, 1000])
@pytest.mark.parametrize("phase", ["learn", "write", "validate"])
def test_the_result_fits_or_nothing_is_left_to_change(memory, phase):
    peaks: list[int] = []

    def measure(run: Run) -> Estimate:
        found = measured(run, phase)
        peaks.append(found.memory.peak_bytes)
        return found

    draft, estimate, fits = fitted(DRAFT, memory, measure, lambda line: None)
    assert fits == (peaks[-1] <= FRACTION * memory) and estimate.memory.peak_bytes == peaks[-1]
    assert peaks == sorted(peaks, reverse=True) and len(set(peaks)) == len(peaks) <= MAX_ESTIMATES
    assert estimate == measured(run_of(draft), phase), "the estimate is that of the recipe"
    if not fits:
        assert peaks[-1] in (10, 11) or len(peaks) == MAX_ESTIMATES
    if peaks[0] <= FRACTION * memory:
        assert draft == DRAFT


def test_the_text_of_a_draft_has_its_settings_and_its_reasons():
    text = recipe_text(DRAFT, ["title"])
    assert "  # finetune: {updates: 3}" in text and "# title" in text
    for path, setting in DRAFT.items():
        (line,) = [line for line in text.splitlines() if f"{path.rpartition('.')[2]}: " in line and line.endswith(setting.why)]
        assert str(setting.value).split(":")[0].strip("{'") in line
