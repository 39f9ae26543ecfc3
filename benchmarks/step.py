"""A whole training step: prompts in, weights updated, against TRL's DistillationTrainer.

    python -m benchmarks.step --model models/smollm2 [--precision bf16] [--quick]

The teacher is the model named, the student eight of its layers.  Both sides get the same prompts, write answers of the same
length (nothing ends one), and make the whole update, optimiser included.  `jsd` is plain on-policy distillation by the
Jensen-Shannon divergence, which is what TRL does.  `mgsr` is the method as the package has it: half of its sequences are
written, revised (SCRG) and written on, half are gold, all carry DAC-KL and the span loss, and the gold answers cross entropy.
`mgsr-all-revised` writes and revises every one.  TRL stands here with and without gradient checkpointing, its default.
"""

import contextlib
import functools
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import redistill.generation.local
import redistill.models.student
from benchmarks import measuring
from redistill.config.run import decode_run
from redistill.contracts import Example
from redistill.data.spans.mark import SpanMarker
from redistill.models.families import body_module
from redistill.models.initialise import student_from_layers
from redistill.policies.draft_scores import DraftScores
from redistill.records import RawPrompt, Record
from redistill.runs.build import build_evaluator, build_parts
from redistill.runs.load import DataSets
from redistill.runs.models import load_models
from redistill.runs.opened import assemble, make_accelerator
from redistill.teachers.local import LocalTeacher
from redistill.training import loop as training
from redistill.training.parts import Parts, TrainingState
from redistill.training.progress import Progress

STUDENT_LAYERS = 8
PAGES = Path(__file__).parents[1] / "docs"
METHODS: dict[str, dict[str, Any]] = {
    "jsd": {
        "policy": "student_generated",
        "objective": {
            "sft_weight": 0.0,
            "divergence": {"kind": "jensen_shannon", "teacher_weight": 0.5},
            "span_weight": 0.0,
        },
    },
    "mgsr": {},
    "mgsr-all-revised": {"policy": "revised"},
}
TRL = {"trl": False, "trl-checkpointing": True}
WHAT = ("time", "memory", "parts")


@dataclass(frozen=True)
class Work:
    """What both sides have to do.

    Args:
        model: The teacher: a folder or a hub name.
        precision: "fp32", or "bf16" for autocast over the student's fp32 weights and a teacher in bf16.
        batch: Sequences of an update.
        prompt, response: Their lengths in tokens.
    """

    model: str
    precision: Literal["fp32", "bf16"]
    batch: int = 8
    prompt: int = 64
    response: int = 192

    @property
    def teacher_dtype(self) -> str:
        return "float32" if self.precision == "fp32" else "bfloat16"

    def layers(self) -> tuple[int, ...]:
        """The student's layers of the teacher: evenly spread, the first and the last among them."""
        last = AutoConfig.from_pretrained(self.model).num_hidden_layers - 1
        return tuple(round(place * last / (STUDENT_LAYERS - 1)) for place in range(STUDENT_LAYERS))

    def texts(self, tokenizer: Any) -> list[tuple[list[int], list[int]]]:
        """Prompts and answers out of this project's pages, each prompt of exactly N tokens as text, too."""
        pages = "\n".join(path.read_text() for path in sorted(PAGES.glob("*.md")))
        ids = tokenizer(pages, add_special_tokens=False)["input_ids"]
        whole = [ids[i : i + self.prompt + self.response] for i in range(0, len(ids), self.prompt + self.response)][:-1]
        found = [(each[: self.prompt], each[self.prompt :]) for each in whole]
        return [(prompt, answer) for prompt, answer in found if tokenizer(tokenizer.decode(prompt))["input_ids"] == prompt]


# --- the rivals -----------------------------------------------------------------------------------------------------------


def ours(work: Work, method: str) -> tuple[Parts, Callable[[], None]]:
    """This package's own parts, as a run has them, and its own step, log and guards and all."""
    config = decode_run(
        {
            "name": "step",
            "method": "mgsr",
            "out": tempfile.mkdtemp(),
            "teacher": {"model": work.model, "dtype": work.teacher_dtype},
            "student": {"model": "teacher", "initialise": {"layers": list(work.layers())}},
            "data": {"train": ["-"], "tokens": {"prompt_tokens": work.prompt, "response_tokens": work.response}},
            "training": {"updates": 1000, "batch_size": work.batch, "precision": work.precision, "log_every": 1000},
            **METHODS[method],
        },
        "step",
    )
    models = replace(load_models(config), end_ids=(-1,))  # nothing ends a text
    record = Record(record_id="-", prompt=RawPrompt("-"), references=("-",))
    examples = [
        Example(
            sample=sample,
            record=record,
            prompt_ids=tuple(prompt),
            token_ids=(*prompt, *answer),
            supervised=(False,) * len(prompt) + (True,) * len(answer),
        )
        for sample, (prompt, answer) in enumerate(work.texts(models.tokenizer))
    ]
    data = DataSets(train=examples, validation=(), validation_examples=(), tests={}, manifest={})
    run = assemble(config, make_accelerator(config.training.precision), models, data, Progress(enabled=False))
    parts = build_parts(run, build_evaluator(run, models.student))
    config.folder.mkdir(parents=True, exist_ok=True)
    return parts, partial(training._step, parts, config.optimiser, TrainingState())


def trl(work: Work, checkpointing: bool) -> Callable[[], None]:
    """TRL's own training step on the next prompts, then clipping and optimiser as its Trainer's loop has them."""
    from datasets import Dataset
    from trl import DistillationConfig, DistillationTrainer

    make_accelerator(work.precision)  # the Trainer's shares its state, and would else be of the precision before
    tokenizer = AutoTokenizer.from_pretrained(work.model)
    teacher = AutoModelForCausalLM.from_pretrained(work.model, dtype=getattr(torch, work.teacher_dtype))
    student = student_from_layers(teacher, work.layers()).to(torch.float32)
    student.generation_config.eos_token_id = None
    prompts = [tokenizer.decode(prompt) for prompt, _ in work.texts(tokenizer)]
    trainer = DistillationTrainer(
        model=student,
        teacher_model=teacher,
        args=DistillationConfig(
            output_dir=tempfile.mkdtemp(),
            beta=0.5,
            max_completion_length=work.response,
            per_device_train_batch_size=work.batch,
            gradient_checkpointing=checkpointing,
            bf16=work.precision == "bf16",
            optim="adamw_torch_fused",
            use_cpu=not torch.cuda.is_available(),
            report_to=[],
        ),
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
    )
    trainer.eos_token_ids = [-1]  # nothing ends a text
    trainer.generation_config.eos_token_id = None
    trainer.create_optimizer()
    model, optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
    trainer.model_wrapped = model
    trainer.current_gradient_accumulation_steps = 1
    batches = iter(trainer.get_train_dataloader())

    def step() -> None:
        model.train()
        trainer.training_step(model, next(batches), None)
        trainer.accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        model.zero_grad()

    return step


def rival(work: Work, name: str) -> Callable[[], object]:
    """The step of one rival, tried once, so that the optimiser's state is there."""
    step = trl(work, TRL[name]) if name in TRL else ours(work, name)[1]
    step()
    return step


# --- where the time goes ------------------------------------------------------------------------------------------------


class Stopwatch:
    """Processor seconds by part; what is begun within a part belongs to that part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._running = False

    @contextlib.contextmanager
    def on(self, owner: Any, name: str, part: str) -> Iterator[None]:
        """While open, calls of `owner.name` count as `part`."""
        called = getattr(owner, name)

        @functools.wraps(called)  # the signature is that of the function: a body is asked for the name of its cache
        def timed(*args: Any, **more: Any) -> Any:
            if self._running:
                return called(*args, **more)
            self._running, began = True, time.process_time()
            try:
                return called(*args, **more)
            finally:
                self._running = False
                self.seconds[part] = self.seconds.get(part, 0.0) + time.process_time() - began

        setattr(owner, name, timed)
        try:
            yield
        finally:
            setattr(owner, name, called)


def breakdown(work: Work, method: str, steps: int) -> dict[str, float]:
    """Seconds of a step by part; only of use on a CPU, where nothing runs on behind the call that started it."""
    parts, step = ours(work, method)
    step()
    watch = Stopwatch()
    places = [
        (redistill.generation.local, "generate", "generate"),
        (DraftScores, "of", "detect"),
        (SpanMarker, "__call__", "spans"),
        (LocalTeacher, "rows", "teacher body"),
        (body_module(parts.learner.student.model), "forward", "student body, forward"),
        (redistill.models.student, "with_phrases", "phrases"),
        (redistill.models.student, "vocab_pass", "both heads and the terms"),
        (parts.accelerator, "backward", "student body, backward"),
        (training, "_clip", "clip and optimiser"),
        (parts.learner.optimizer, "step", "clip and optimiser"),
    ]
    with contextlib.ExitStack() as stack:
        for place in places:
            stack.enter_context(watch.on(*place))
        began = time.process_time()
        for _ in range(steps):
            step()
        whole = time.process_time() - began
    found = {part: seconds / steps for part, seconds in watch.seconds.items()}
    return {**found, "rest": whole / steps - sum(found.values()), "whole": whole / steps}


def main() -> None:
    chosen = measuring.arguments(
        __doc__ or "",
        model={"default": "HuggingFaceTB/SmolLM2-135M", "help": "the teacher: a folder or a hub name"},
        precision={"choices": ["fp32", "bf16"], "help": "one alone; both without"},
        rivals={"nargs": "+", "choices": [*METHODS, *TRL], "help": "these alone"},
        what={"nargs": "+", "choices": WHAT, "default": list(WHAT), "help": "this alone"},
    )
    shape = {"batch": 2, "prompt": 16, "response": 16} if chosen.quick else {}
    names = chosen.rivals or [*METHODS, *TRL]
    results = {}
    for precision in [chosen.precision] if chosen.precision else ["fp32", "bf16"]:
        work = Work(chosen.model, precision, **shape)
        found: dict[str, Any] = {}
        if "time" in chosen.what:
            turns = chosen.repetitions or (1 if chosen.quick else 5)
            found["seconds"] = measuring.interleaved({name: rival(work, name) for name in names}, turns, warmups=0)
            if "trl" in names:
                found["ratios"] = measuring.ratios(found["seconds"], "trl")
        if "memory" in chosen.what:
            peaks = found["peak_bytes"] = {name: measuring.peak_of(rival, work, name) for name in names}
            if "trl" in names:
                found["memory_ratios"] = {name: peak / peaks["trl"] for name, peak in peaks.items()}
        if "parts" in chosen.what:
            found["parts"] = {name: breakdown(work, name, 1 if chosen.quick else 2) for name in names if name in METHODS}
        results[precision] = found
    measuring.write("step", {"work": {"layers": STUDENT_LAYERS, **vars(work)}, **results}, quick=chosen.quick)


if __name__ == "__main__":
    main()
