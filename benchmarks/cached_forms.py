"""Held-out KL after 100 updates in the toy world, for each form of a cached teacher, against bytes per target.

    python -m benchmarks.cached_forms [--quick]

The teacher is a model of two layers, trained on answers of the toy world.  The student is its first layer, and minimises
forward KL alone on 120 other rows.  KL(p || q) is the mean over the targets of 64 held-out rows, p being the whole teacher.
"renormalised" is top-k as other programs use it: the listed probabilities are divided by their sum, and the rest is ignored.
"""

import copy
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks import measuring
from redistill.config.sections import TeacherConfig
from redistill.contracts import Teacher, TokenSequence, TopClasses, items_of
from redistill.data.collate import collate
from redistill.interfaces import CausalModel, Tokenizer
from redistill.losses.divergences import ForwardKL
from redistill.models.families import body, head
from redistill.models.initialise import fresh_model, student_from_layers
from redistill.models.student import StudentModule
from redistill.randomness import generator
from redistill.runs.teacher_cache import reader_of
from redistill.storage import files
from redistill.teachers.cached import CachedTeacher
from redistill.teachers.filling import Plan, StoreWriter
from redistill.teachers.forms import Sampled, Tensors, TopK
from redistill.teachers.store import TeacherStore
from redistill.toy.world import Split, toy_records, toy_tokenizer
from redistill.training.objective import Counts, Objective, terms
from redistill.vocab_pass import row_statistics

SEED, VOCABULARY, UPDATES, BATCH, LEARNING_RATE = 10, 1536, 100, 16, 1e-3
TEACHER_UPDATES, TEACHER_BATCH, TEACHER_RATE = 200, 32, 3e-3
ROWS: dict[Split, int] = {"teacher": 4000, "train": 120, "validation": 64}
SIZES = {"hidden_size": 96, "intermediate_size": 288, "num_hidden_layers": 2, "num_attention_heads": 4}
NUMBERS = (4, 12, 50)
FORMS = {
    "full, float32": TeacherConfig(model="toy", cache_dtype="float32"),
    "full, bfloat16": TeacherConfig(model="toy", cache_dtype="bfloat16"),
    **{f"top-k with rest, k = {k}": TeacherConfig(model="toy", cache_form=TopK(k=k)) for k in NUMBERS},
    **{f"top-k renormalised, k = {k}": TeacherConfig(model="toy", cache_form=TopK(k=k)) for k in NUMBERS},
    **{f"sampled, {n} draws": TeacherConfig(model="toy", cache_form=Sampled(draws=n)) for n in NUMBERS},
}


def renormalised(form: TopK, tensors: Tensors) -> TopClasses:
    """The listed classes alone, with the sum 1."""
    logp_NK = tensors["logp_NK"].float().log_softmax(dim=-1)
    return TopClasses(tensors["class_NK"].long(), logp_NK, torch.full_like(logp_NK[:, 0], -torch.inf))


def sequences(split: Split, tokenizer: Tokenizer) -> list[TokenSequence]:
    """Prompts and answers of the toy world, whose targets are the answers."""
    made = []
    for sample, record in enumerate(toy_records(ROWS[split], SEED, split)):
        prompt, answer = f"Q: {record.prompt.instruction}\nA: ", record.references[0]
        first = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        last = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        marks = (False,) * len(first) + (True,) * len(last)
        made.append(TokenSequence(sample=sample, token_ids=(*first, *last), supervised=marks, origin="dataset"))
    return made


def trained(
    model: CausalModel,
    teacher: Teacher | None,
    rows: Sequence[TokenSequence],
    updates: int,
    batch_size: int,
    rate: float,
    seed: int,
) -> CausalModel:
    """Train a copy of a model: on the tokens without a teacher, and with forward KL alone with one."""
    own, vocabulary = copy.deepcopy(model).requires_grad_(True), head(model).num_classes
    student = StudentModule(own, vocabulary=vocabulary, divergence=ForwardKL())
    objective = Objective() if teacher is None else Objective(sft_weight=0.0, divergence=ForwardKL())
    optimiser = torch.optim.AdamW(student.parameters(), rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)
    for step in range(updates):
        chosen = generator(seed, "benchmark batch", step).choice(len(rows), batch_size, replace=False)
        items = items_of([rows[index] for index in chosen], "sft" if teacher is None else "distillation")
        batch = collate(items, pad_id=0)
        target = None if teacher is None else teacher.rows(batch)
        total, _ = student(batch, target, terms(objective, Counts.of([batch]), batch, ForwardKL()))
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        schedule.step()
    return student.model.eval()


@torch.no_grad()
def held_out_kl(taught: CausalModel, student: CausalModel, rows: Sequence[TokenSequence]) -> float:
    """Mean KL(p || q) in nats over the targets of the rows."""
    batch = collate(items_of(rows, "distillation"), pad_id=0)
    p, q = (
        body(model)(batch.input_ids_BT, batch.attention_mask_BT).flatten(0, 1)[batch.position_N] for model in (taught, student)
    )
    logits_NV = head(taught).logits(p)
    return float(row_statistics(q, head(student), lambda rows: logits_NV[rows], ["forward_kl"])["forward_kl"].double().mean())


def main() -> None:
    chosen = measuring.arguments(__doc__ or "", seeds={"type": int, "default": 3, "help": "number of seeds of the students"})
    updates, seeds = (3, 1) if chosen.quick else (UPDATES, chosen.seeds)
    tokenizer = toy_tokenizer(VOCABULARY, SEED)
    config = {"model_type": "llama", "vocab_size": len(tokenizer), "max_position_embeddings": 512, "tie_word_embeddings": True}
    data: dict[Split, list[TokenSequence]] = {split: sequences(split, tokenizer) for split in ROWS}
    start = fresh_model({**config, **SIZES}, SEED)
    taught = trained(start, None, data["teacher"], updates * TEACHER_UPDATES // UPDATES, TEACHER_BATCH, TEACHER_RATE, SEED)
    taught.requires_grad_(False)
    student, vocabulary = student_from_layers(taught, (0,)), head(taught).num_classes
    results: dict[str, Any] = {"untrained": {"kl": held_out_kl(taught, student, data["validation"])}}
    with tempfile.TemporaryDirectory() as made:
        for name, source in FORMS.items():
            files.make_folder(folder := Path(made) / name.replace(" ", "-"))
            reader = reader_of(source, taught, vocabulary, 0, None)
            StoreWriter(folder, {}).states(Plan(data["train"], reader.row_bytes), reader, lambda *done: None)
            store = TeacherStore.open(folder, report=print)
            size = sum(path.stat().st_size for path in folder.glob("states-*")) / store.layout.targets
            teacher = CachedTeacher(store, vocabulary=vocabulary, device="cpu")
            train = partial(trained, student, teacher, data["train"], updates, BATCH, LEARNING_RATE)
            with mock.patch.object(TopK, "classes", renormalised) if "renormalised" in name else nullcontext():
                found = [held_out_kl(taught, train(seed), data["validation"]) for seed in range(seeds)]
            results[name] = {"bytes_per_target": size, "kl": statistics.mean(found), "kl_of_seeds": found}
            print(name, results[name], flush=True)
    measuring.write("cached_forms", {"vocabulary": vocabulary, **results}, quick=chosen.quick)


if __name__ == "__main__":
    main()
