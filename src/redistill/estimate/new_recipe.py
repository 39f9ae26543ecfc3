"""Writes a recipe for given models and data; `redistill init` uses this module."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from redistill.config.methods import Method, method
from redistill.config.run import Run
from redistill.errors import ConfigError, VocabularyError
from redistill.estimate import Estimate, estimate
from redistill.estimate.draft import Draft, Setting, recipe_text, run_of
from redistill.estimate.fitting import FRACTION, Fitted, Measure, fitted
from redistill.estimate.sample_run import text_lengths
from redistill.interfaces import Tokenizer
from redistill.models.load import ModelConfig, load_tokenizer, read_config
from redistill.models.vocabulary import match_vocabularies
from redistill.processes.memory import device_bytes, machine_bytes
from redistill.records import Json
from redistill.runs.record import cores
from redistill.training.progress import duration

QUANTILE = 0.95
"""Fraction of the training rows whose prompts and answers are not truncated by the length limits."""
LONGEST = 4096
"""Largest length limit of prompts and of answers that is chosen, in tokens."""
VALIDATIONS = 10
"""Number of validations in a run, without those before and after training."""


@dataclass(frozen=True, kw_only=True)
class Requirements:
    """Settings of a new recipe that the user has chosen.

    The other settings are chosen automatically.

    More than 12 fields: there is one for each option of `redistill init`.

    Args:
        name: Name of the run.
        method: Method of distillation.
        teacher: A hub name, a folder or a .gguf file; None without a teacher.
        student: A hub name, a folder or a .gguf file; None to build the student from layers of the teacher.
        layers: Number of layers that the student keeps, >= 1; None to keep all.
        data: Files, folders or hub names with training data.
        tests: Test sets by name; None for the data of the hub.
        lora: Rank of adapters that are trained instead of all weights; None to train all weights.
        placement: Value of the field `placement`.
        updates: Number of updates, or of epochs as "3 epochs"; None to choose it.
        hours: Time of training, from which the number of updates is computed; None for no limit.
        batch_size: Sequences in one update, >= 1.
        prompt_tokens: Maximum prompt length; None to choose it from the data.
        response_tokens: Maximum answer length; None to choose it from the data.
        memory_bytes: Memory of the device; None for that of this machine.

    Raises:
        ConfigError: `student` is not set, and `teacher` or `layers` is not set either; both `updates` and `hours` are set; or
            `hours` is not a finite number > 0.
    """

    name: str
    method: str = "mgsr"
    teacher: str | None = None
    student: str | None = None
    layers: int | None = None
    data: tuple[str, ...]
    tests: dict[str, str | None]
    lora: int | None = None
    placement: str = "auto"
    updates: int | str | None = None
    hours: float | None = None
    batch_size: int = 8
    prompt_tokens: int | None = None
    response_tokens: int | None = None
    memory_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.student is None and (self.teacher is None or self.layers is None):
            raise ConfigError("--student: missing; name a model, or set --teacher and --layers to build it from the teacher")
        if self.updates is not None and self.hours is not None:
            raise ConfigError("--updates and --hours: set only one of them")
        if self.hours is not None and not 0 < self.hours < math.inf:
            raise ConfigError(f"--hours {self.hours}: must be > 0 and finite")


class NewRecipe(NamedTuple):
    """A recipe that `new_recipe` has written.

    Args:
        text: The recipe in YAML, with comments.
        run: Its configuration.
        estimate: Parameters, memory and time.
        fits: Whether the run needs at most 80 % (`FRACTION`) of the memory.
        memory_bytes: Memory of the device.
    """

    text: str
    run: Run
    estimate: Estimate
    fits: bool
    memory_bytes: int


def new_recipe(requirements: Requirements, report: Callable[[str], None], measure: Measure = estimate) -> NewRecipe:
    """Return a recipe with settings that suit the models, the data and this machine.

    Only configs, tokenizers and local data files are read, no weights.

    Args:
        requirements: What the recipe must train.
        report: Function that is called with a line of text when a step starts.
        measure: Function that estimates a run.

    Raises:
        ConfigError: settings cannot be combined, or the data is invalid.
        ModelError: a config or tokenizer is missing or damaged.
        VocabularyError: teacher and student have different vocabularies.
    """
    has_gpu = torch.cuda.is_available()
    memory = requirements.memory_bytes or device_bytes("cuda" if has_gpu else "cpu") or machine_bytes() or 8 * 10**9
    row = method(requirements.method)
    draft = {**_models(requirements, row, has_gpu), **_data(requirements)}
    report("reading configs, tokenizers and text lengths")
    source = ModelConfig(model=str(requirements.student or requirements.teacher))
    tokenizer = load_tokenizer(source)
    _check_vocabularies(requirements, tokenizer)
    draft |= _template(tokenizer)
    draft |= _lengths(requirements, draft, source, tokenizer)
    draft |= _training(requirements, row, has_gpu)
    found = fitted(draft, memory, measure, report)
    draft = {**found.draft, **_duration(requirements, found.estimate)}
    run = run_of(draft)
    return NewRecipe(recipe_text(draft, _head(requirements, found, memory, has_gpu)), run, found.estimate, found.fits, memory)


def _models(requirements: Requirements, row: Method, has_gpu: bool) -> Draft:
    draft = {
        "name": Setting(requirements.name, f"the run folder is runs/{requirements.name}, unless --out is given"),
        "method": Setting(requirements.method, row.summary),
        "seed": Setting(10, "of training; repeat a result with at least three seeds"),
    }
    if requirements.placement != "auto":
        draft["placement"] = Setting(requirements.placement, "student and teacher are split over all processes (FSDP2)")
    fast = "half the memory of float32, and faster on a GPU" if has_gpu else "the fastest on a CPU"
    dtype = "bfloat16" if has_gpu else "float32"
    if requirements.teacher is not None:
        draft["teacher.model"] = Setting(requirements.teacher, "a hub name, a folder, or a .gguf file")
        draft["teacher.dtype"] = Setting(dtype, f"of the weights, which are not trained: {fast}")
    made = "built from layers of the teacher" if requirements.student is None else "a hub name, a folder, or a .gguf file"
    draft["student.model"] = Setting(requirements.student or "teacher", made)
    if requirements.layers is not None:
        draft["student.initialise.layers"] = Setting(requirements.layers, "evenly spaced, with the first and the last layer")
    if requirements.lora is not None:
        draft["student.dtype"] = Setting(dtype, f"of the frozen weights: {fast}")
        draft["student.lora.rank"] = Setting(requirements.lora, "of the adapters; the other weights are frozen")
        draft["student.lora.alpha"] = Setting(4.0 * requirements.lora, "scaling factor 4, as in the paper (64 / 16)")
    if row.start == "finetuned":
        why = f"{requirements.method} usually starts from a fine-tuned student; remove the first # to train one first"
        draft["student.finetune"] = Setting({"updates": "3 epochs", "learning_rate": 5e-4}, why, is_hint=True)
    return draft


def _data(requirements: Requirements) -> Draft:
    tests: dict[str, Json] = dict(requirements.tests)
    none = "add a test set to measure the student: {name: file}"
    return {
        "data.train": Setting(list(requirements.data), "files, folders or hub names"),
        "data.validation_rows": Setting(100, "taken from the training data; they choose the best checkpoint"),
        "data.tests": Setting(tests, "name: file, or null for the hub; never seen in training" if tests else none),
    }


def _check_vocabularies(requirements: Requirements, tokenizer: Tokenizer) -> None:
    """Raise VocabularyError if teacher and student have different vocabularies.

    `tokenizer` is the tokenizer of the student.
    """
    if requirements.teacher is None or requirements.student is None:
        return
    vocabularies = load_tokenizer(ModelConfig(model=requirements.teacher)).get_vocab(), tokenizer.get_vocab()
    size = 1 + max(max(each.values(), default=-1) for each in vocabularies)  # the heads are compared when the run loads them
    try:
        match_vocabularies(*vocabularies, size, size)
    except VocabularyError as error:
        raise VocabularyError(f"--teacher {requirements.teacher} --student {requirements.student}: {error}") from error


def _template(tokenizer: Tokenizer) -> Draft:
    """Return the setting `template: alpaca` if the tokenizer has no chat template.

    By default, rows with messages need a chat template.
    """
    if tokenizer.chat_template:
        return {}
    return {"data.tokens.template": Setting("alpaca", "the tokenizer has no chat template; rows with messages use this one")}


def _lengths(requirements: Requirements, draft: Draft, source: ModelConfig, tokenizer: Tokenizer) -> Draft:
    """Return the length limits and the number of validation rows.

    Both are chosen from the texts of the training data.
    """
    positions = getattr(read_config(source).get_text_config(), "max_position_embeddings", None)
    most = LONGEST if not isinstance(positions, int) else min(LONGEST, positions // 2)
    wide = {f"data.tokens.{part}_tokens": Setting(most, "") for part in ("prompt", "response")}
    wide["data.validation_rows"] = Setting(1, "")
    lengths, count, _ = text_lengths(run_of({**draft, **wide}), tokenizer)
    found: dict[str, Setting] = {}
    if count is not None:
        why = "a tenth of the training data, at most 100; they choose the best checkpoint"
        found["data.validation_rows"] = Setting(max(1, min(100, (count + 1) // 10)), why)
    for part, index, given in (("prompt", 0, requirements.prompt_tokens), ("response", 1, requirements.response_tokens)):
        path = f"data.tokens.{part}_tokens"
        if given is not None:
            found[path] = Setting(given, "as given")
        elif count is None:
            found[path] = Setting(min(256, most), "the texts were not read; `redistill data check` measures them")
        else:
            ordered = sorted(pair[index] for pair in lengths)
            longest = ordered[math.ceil(QUANTILE * len(ordered)) - 1]
            limit = min(most, 8 * math.ceil((longest + 1) / 8))
            found[path] = Setting(limit, f"{QUANTILE:.0%} of the {part}s have at most {longest} tokens")
    return found


def _training(requirements: Requirements, row: Method, has_gpu: bool) -> Draft:
    draft: dict[str, Setting] = {}
    if "learning_rate" in row.optimiser:
        draft["optimiser.learning_rate"] = Setting(_number(row.optimiser["learning_rate"]), "the default of the method")
    else:
        draft["optimiser.learning_rate"] = Setting(5e-4, "the paper's; try 2e-4 and 1e-3, also for the baseline")
    precision, why = (
        ("bf16", "autocast; weights, logits and losses stay float32") if has_gpu else ("fp32", "bf16 is no faster on most CPUs")
    )
    shared = "over all processes; the learning rate belongs to this number"
    return {
        **draft,
        "training.updates": Setting(
            requirements.updates or "3 epochs", "as given" if requirements.updates else "raise it later to extend"
        ),
        "training.batch_size": Setting(requirements.batch_size, shared),
        "training.precision": Setting(precision, why),
        "training.generation_batch_size": Setting(64, "texts that are generated at once; fewer need less memory"),
        "training.evaluate_every": Setting(0, ""),
        "evaluation.seeds": Setting([10, 20, 30, 40, 50], "each test prompt is answered once for each seed"),
        "evaluation.batch_size": Setting(16, "answers do not depend on it; fewer need less memory"),
    }


def _number(value: object) -> float:
    assert isinstance(value, int | float)
    return value


def _duration(requirements: Requirements, found: Estimate) -> Draft:
    """Return the number of updates for the given hours, and `evaluate_every`."""
    draft: dict[str, Setting] = {}
    updates, length = found.updates, requirements.updates
    if requirements.hours is not None:
        seconds = 3600 * requirements.hours - (VALIDATIONS + 2) * found.seconds.validation
        updates = length = max(1, int(seconds / found.seconds.step))
        why = f"{requirements.hours:g} h at {found.seconds.step:.3g} s an update, with {VALIDATIONS + 2} validations"
        draft["training.updates"] = Setting(updates, why)
    why = "the checkpoint with the best validation becomes the student"
    every: int | str = "1 epoch" if length is None or updates is None else max(1, updates // VALIDATIONS)
    return {**draft, "training.evaluate_every": Setting(every, why)}


def _head(requirements: Requirements, found: Fitted, memory: int, has_gpu: bool) -> list[str]:
    """Return the comment at the top of the recipe."""
    counts = found.estimate.parameters.items()
    sizes = {name: f"{number / 1e6:,.1f} M" if number >= 1e6 else f"{number:,}" for name, number in counts}
    path = f"{Path(requirements.name).name}.yaml"
    trained = "" if requirements.lora is None else f", of which {sizes['trained']} are trained"
    taught = f", teacher {sizes['teacher']}" if "teacher" in sizes else ""
    device = torch.cuda.get_device_name() if has_gpu else f"{cores()} cores"
    total = found.estimate.run_seconds
    whole = "" if total is None or requirements.hours is not None else f", {duration(total)} in all"
    peak, step = found.estimate.memory.peak_bytes / 1e9, found.estimate.seconds.step
    lines = [
        f"{requirements.name}: {requirements.method}; student {sizes['student']} parameters{trained}{taught}",
        f"  redistill run {path} --smoke   # one update in a temporary folder",
        f"  redistill run {path}",
        f"Settings for {device} and {memory / 1e9:.1f} GB. Estimate: {peak:.1f} GB, {step:.3g} s an update{whole}.",
    ]
    if not found.fits:
        lines.append(f"The run needs more than {FRACTION:.0%} of the memory: use LoRA, shorter texts or a smaller batch.")
    return [*lines, "Every field is described in docs/configuration.md. `redistill config` prints all defaults."]
