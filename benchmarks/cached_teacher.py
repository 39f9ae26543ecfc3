"""An update of KD with a cached teacher, against the live teacher: time, peak memory and bytes per target.

    python -m benchmarks.cached_teacher --model models/smollm2 [--precision bf16] [--quick]

The teacher is the model named, the student eight of its layers, loaded from a folder of its own.  Both runs have the same rows
and make whole updates, optimiser included.  The memory is that of a process that loads the models and makes two updates.
"""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import measuring
from benchmarks.step import Work
from redistill.config.run import Run, decode_run
from redistill.config.sections import TeacherConfig
from redistill.contracts import Example
from redistill.models.families import head
from redistill.models.initialise import student_from_layers
from redistill.models.load import ModelConfig, load_model, load_tokenizer
from redistill.policies.order import gold_sequence
from redistill.records import RawPrompt, Record
from redistill.runs.build import build_evaluator, build_parts
from redistill.runs.load import DataSets
from redistill.runs.models import load_models
from redistill.runs.opened import assemble, make_accelerator
from redistill.runs.teacher_cache import reader_of
from redistill.storage import files
from redistill.teachers.filling import Plan, StoreWriter, store_bytes
from redistill.training import loop as training
from redistill.training.parts import TrainingState
from redistill.training.progress import Progress

LENGTHS = {"64+192": (64, 192), "192+64": (192, 64)}
UPDATES_OF_THE_PEAK = 2
BATCHES = 4  # stored batches; the updates repeat them


def examples(work: Work) -> list[Example]:
    """Rows with prompts and answers of exactly the lengths of the work."""
    record = Record(record_id="-", prompt=RawPrompt("-"), references=("-",))
    marks = (False,) * work.prompt + (True,) * work.response
    tokenizer = load_tokenizer(ModelConfig(model=work.model))
    return [
        Example(sample=sample, record=record, prompt_ids=tuple(prompt), token_ids=(*prompt, *answer), supervised=marks)
        for sample, (prompt, answer) in enumerate(work.texts(tokenizer)[: BATCHES * work.batch])
    ]


def prepared(work: Work, folder: Path) -> dict[str, float]:
    """Write the student and the store into a folder; returns the store's sizes in bytes, by name."""
    config = TeacherConfig(model=work.model, dtype=work.teacher_dtype)
    model, tokenizer = load_model(config)
    student = student_from_layers(model, work.layers())
    student.float().save_pretrained(folder / "student")
    tokenizer.save_pretrained(folder / "student")
    teacher = reader_of(config, model.requires_grad_(False), head(model).num_classes, tokenizer.pad_token_id or 0, None)
    plan = Plan([gold_sequence(example) for example in examples(work)], teacher.row_bytes)
    files.make_folder(folder / "store")
    StoreWriter(folder / "store", {}).states(plan, teacher, lambda done, total, tokens: None)
    size = sum(path.stat().st_size for path in (folder / "store").iterdir())
    formula = store_bytes(plan.layout(teacher), teacher)
    return {"bytes": size, "formula": formula, "ratio": size / formula, "bytes_per_target": teacher.row_bytes}


def recipe(work: Work, folder: Path, kind: str) -> Run:
    """The recipe of KD with the live or the cached teacher."""
    live = {"model": work.model, "dtype": work.teacher_dtype}
    return decode_run(
        {
            "name": "cached-teacher",
            "method": "kd",
            "out": tempfile.mkdtemp(),
            "teacher": live if kind == "live" else {"kind": "cached", "path": str(folder / "store")},
            "student": {"model": str(folder / "student")},
            "data": {"train": ["-"], "tokens": {"prompt_tokens": work.prompt, "response_tokens": work.response}},
            "training": {"updates": 1000, "batch_size": work.batch, "precision": work.precision, "log_every": 1000},
        },
        "cached-teacher",
    )


def update(work: Work, folder: Path, kind: str) -> tuple[Path, Callable[[], None]]:
    """The log of one rival, and its update."""
    config = recipe(work, folder, kind)
    data = DataSets(train=examples(work), validation=(), validation_examples=(), tests={}, manifest={})
    run = assemble(config, make_accelerator(config.training.precision), load_models(config), data, Progress(enabled=False))
    parts = build_parts(run, build_evaluator(run, run.models.student))
    config.folder.mkdir(parents=True, exist_ok=True)
    return config.folder / "metrics.jsonl", partial(training._step, parts, config.optimiser, TrainingState())


def loaded_and_trained(work: Work, folder: Path, kind: str) -> Callable[[], None]:
    """Load the models and make a few updates; nothing is loaded before."""

    def everything() -> None:
        _, step = update(work, folder, kind)
        for _ in range(UPDATES_OF_THE_PEAK):
            step()

    return everything


def measured(work: Work, turns: int) -> Mapping[str, Any]:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        found: dict[str, Any] = {"size": prepared(work, folder)}
        print(found, flush=True)
        rivals = {kind: update(work, folder, kind) for kind in ("live", "cached")}
        found["seconds"] = measuring.interleaved({kind: step for kind, (_, step) in rivals.items()}, turns)
        found["ratios"] = measuring.ratios(found["seconds"], "live")
        found["losses"] = {kind: [line["loss"] for line in files.read_lines(log)] for kind, (log, _) in rivals.items()}
        peaks = {kind: measuring.peak_of(loaded_and_trained, work, folder, kind) for kind in ("live", "cached")}
        return found | {"peak_bytes": peaks, "memory_ratio": peaks["cached"] / peaks["live"]}


def main() -> None:
    chosen = measuring.arguments(
        __doc__ or "",
        model={"default": "HuggingFaceTB/SmolLM2-135M", "help": "the teacher: a folder or a hub name"},
        precision={"choices": ["fp32", "bf16"], "help": "one alone; both without"},
        lengths={"choices": [*LENGTHS], "help": "one alone; both without"},
    )
    results: dict[str, Any] = {}
    for precision in [chosen.precision] if chosen.precision else ["fp32", "bf16"]:
        for name in [chosen.lengths] if chosen.lengths else LENGTHS:
            prompt, response = LENGTHS[name]
            work = Work(chosen.model, precision, prompt=prompt, response=response)
            if chosen.quick:
                work = replace(work, batch=2, prompt=16, response=16)
            turns = chosen.repetitions or (1 if chosen.quick else 5)
            results[f"{precision} {name}"] = measured(work, turns)
    variant = "_".join(filter(None, (chosen.precision, chosen.lengths)))
    measuring.write("cached_teacher", results, quick=chosen.quick, variant=variant)


if __name__ == "__main__":
    main()
