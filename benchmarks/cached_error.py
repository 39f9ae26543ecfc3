"""Loss and gradient with a cached teacher against the live teacher, for every divergence, DAC-KL and the span loss.

    python -m benchmarks.cached_error --model models/smollm2 [--quick]

The student consists of two of the teacher's layers.  "float32" compares a cache in float32 with the live teacher, and
"bfloat16, rounded" a cache in bfloat16 with a live teacher whose last hidden states are rounded to bfloat16.  The other columns
compare a cache in fewer bits with the live teacher.  An error of the loss is relative; that of a gradient is its largest
difference over the largest element.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch

from benchmarks import measuring
from benchmarks.cached_teacher import examples
from benchmarks.step import Work
from redistill.config.sections import TeacherConfig
from redistill.contracts import Batch, TeacherTarget, TokenSequence, items_of
from redistill.data.collate import collate
from redistill.errors import RedistillError
from redistill.interfaces import CausalModel
from redistill.losses.dac_kl import DacKLConfig
from redistill.losses.divergences import Divergence
from redistill.losses.span import SpanConfig
from redistill.models.families import body, head
from redistill.models.initialise import student_from_layers
from redistill.models.load import load_model
from redistill.models.student import StudentModule
from redistill.policies.order import gold_sequence
from redistill.runs.teacher_cache import reader_of
from redistill.storage import files
from redistill.teachers.cached import CachedTeacher
from redistill.teachers.filling import Plan, StoreWriter
from redistill.teachers.local import LocalTeacher
from redistill.teachers.store import TeacherStore
from redistill.training.objective import Counts, Objective, terms

DTYPES = ("float32", "bfloat16", "float16")
OBJECTIVES = {
    **{
        f"{cls.__name__}-{number}": Objective(sft_weight=0.0, divergence=example)
        for cls in get_args(Divergence)
        for number, example in enumerate(cls.examples())
    },
    "dac_kl": Objective(sft_weight=0.0, divergence=DacKLConfig()),
    "span": Objective(sft_weight=0.0, span_weight=1.0),
}


class Rounded:
    """A live teacher whose last hidden states are rounded to bfloat16."""

    def __init__(self, model: CausalModel) -> None:
        self._hidden_states, self._head = body(model), head(model)

    @torch.no_grad()
    def rows(self, batch: Batch) -> TeacherTarget:
        hidden_BTE = self._hidden_states(batch.input_ids_BT, batch.attention_mask_BT)
        logits_NV = self._head.logits(hidden_BTE.flatten(0, 1)[batch.position_N].bfloat16().float())
        return lambda rows: logits_NV[rows]


def with_spans(sequence: TokenSequence) -> TokenSequence:
    """The sequence with two spans of four targets."""
    return TokenSequence(
        sample=sequence.sample,
        token_ids=sequence.token_ids,
        supervised=sequence.supervised,
        origin="dataset",
        spans=((0, 4), (6, 10)),
    )


def loss_and_gradient(model: CausalModel, teacher: Any, objective: Objective, batch: Batch) -> tuple[float, torch.Tensor]:
    """The loss of a batch, and the gradient of all weights as one vector."""
    vocabulary = head(model).num_classes
    divergence = objective.build_divergence(vocabulary, seed=3)
    student = StudentModule(model, vocabulary=vocabulary, divergence=divergence)
    student.zero_grad()
    total, _ = student(batch, teacher.rows(batch), terms(objective, Counts.of([batch]), batch, divergence))
    total.backward()
    found = [parameter.grad.flatten() for parameter in student.parameters() if parameter.grad is not None]
    return float(total.detach()), torch.cat(found)


def error(mine: tuple[float, torch.Tensor], theirs: tuple[float, torch.Tensor]) -> dict[str, float]:
    largest = float(theirs[1].abs().max())
    return {"loss": abs(mine[0] / theirs[0] - 1), "gradient": float((mine[1] - theirs[1]).abs().max()) / largest}


def stored(config: TeacherConfig, model: CausalModel, sequences: list[TokenSequence], folder: Path) -> CachedTeacher:
    files.make_folder(folder)
    vocabulary = head(model).num_classes
    reader = reader_of(config, model, vocabulary, 0, None)
    StoreWriter(folder, {}).states(Plan(sequences, reader.row_bytes), reader, lambda *done: None)
    return CachedTeacher(TeacherStore.open(folder, report=print), vocabulary=vocabulary, device="cpu")


def measured(work: Work, folder: Path, names: list[str]) -> Mapping[str, Any]:
    taught, _ = load_model(TeacherConfig(model=work.model))
    taught.requires_grad_(False)
    sequences = [with_spans(gold_sequence(example)) for example in examples(work)[: work.batch]]
    batch = collate(items_of(sequences, "distillation"), pad_id=0, span_config=SpanConfig())
    live: dict[str, Any] = {
        "live": LocalTeacher(taught, vocabulary=head(taught).num_classes, device="cpu"),
        "rounded": Rounded(taught),
    }
    for dtype in DTYPES:
        try:
            live[dtype] = stored(TeacherConfig(model=work.model, cache_dtype=dtype), taught, sequences, folder / dtype)
        except RedistillError as rejected:
            print(rejected)
    student = student_from_layers(taught, 2).requires_grad_(True).eval()
    results = {}
    for name in names:
        objective = OBJECTIVES[name]
        found = {kind: loss_and_gradient(student, teacher, objective, batch) for kind, teacher in live.items()}
        pairs = {"float32": ("float32", "live"), "bfloat16, rounded": ("bfloat16", "rounded")}
        pairs |= {f"{dtype}, live": (dtype, "live") for dtype in DTYPES[1:] if dtype in found}
        results[name] = {pair: error(found[mine], found[theirs]) for pair, (mine, theirs) in pairs.items()}
        print(name, results[name], flush=True)
    largest = {
        pair: {part: max(each[pair][part] for each in results.values()) for part in ("loss", "gradient")} for pair in pairs
    }
    return {"tokens": work.batch * (work.prompt + work.response), "largest": largest, "objectives": results}


def main() -> None:
    chosen = measuring.arguments(
        __doc__ or "",
        model={"default": "HuggingFaceTB/SmolLM2-135M", "help": "the teacher: a folder or a hub name"},
        objectives={"choices": [*OBJECTIVES], "nargs": "+", "default": [*OBJECTIVES], "help": "some alone; all without"},
    )
    work = Work(chosen.model, "fp32", batch=2, prompt=16, response=16 if chosen.quick else 48)
    with tempfile.TemporaryDirectory() as folder:
        measuring.write("cached_error", measured(work, Path(folder), chosen.objectives), quick=chosen.quick)


if __name__ == "__main__":
    main()
