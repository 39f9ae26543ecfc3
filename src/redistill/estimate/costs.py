"""What a sliver costs on this machine, in seconds and bytes: the package's own functions, run on random weights."""

import ctypes
import gc
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from redistill.config.run import Run
from redistill.contracts import DrawItem, GenerationRequest, Sampling
from redistill.data.grouping import read_cost
from redistill.estimate.slivers import SIZES, Affine, Blueprint, Costs, autocast_of, sizes
from redistill.estimate.workload import Micro, Workload
from redistill.generation.generate import generate
from redistill.generation.kv import new_cache, prefixes_can_be_reused
from redistill.models.families import body, body_module, eval_mode
from redistill.models.load import checkpoint_activations
from redistill.models.student import StudentModule
from redistill.teachers.local import LocalTeacher
from redistill.training.objective import Counts, terms
from redistill.training.optimiser import parameter_groups
from redistill.vocab_pass import NUMBERS_PER_DRAW, compiles, row_statistics, vocab_pass

REPETITIONS = 2
DECODED = (4, 20)
"""Tokens of two texts, the difference of which is told apart from reading the prompt."""
HEAD_ROWS = 512
"""The most rows that the head is timed on."""

Clock = Callable[[], float]


@dataclass(frozen=True)
class Stopwatch:
    """The least time of several turns, since whatever else the machine does can only add to it."""

    clock: Clock
    device: torch.device

    def seconds(self, work: Callable[[], object], *, warm: bool = True) -> float:
        """Of `work`, which is done once before where `warm`."""
        if warm:
            work()
        return min(self._once(work) for _ in range(REPETITIONS))

    def _once(self, work: Callable[[], object]) -> float:
        self._wait()
        began = self.clock()
        work()
        self._wait()
        return self.clock() - began

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def model_costs(blueprint: Blueprint, run: Run, work: Workload, watch: Stopwatch, *, learns: bool, writes: bool) -> Costs:
    """Costs of a model, by slivers of it.

    Args:
        learns: Whether it is the student.
        writes: Whether it writes in an update.
    """
    found: dict[str, dict[int, float]] = {}
    for layers in SIZES:
        model = blueprint.sliver(layers, run.seed, watch.device)
        with autocast_of(run, watch.device) if learns else nullcontext():
            each = sizes(model, blueprint.lora, learns and run.training.precision == "bf16")
            each |= _reading(model, work.largest, watch)
            if learns:
                each |= _learning(model, blueprint, run, work.largest, watch)
        with autocast_of(run, watch.device):
            if writes:
                each |= _writing(model, run, work, max(1, work.writing.of(work.batch_size)), watch, "draft")
            if learns:
                validated = min(run.evaluation.batch_size, run.data.validation_rows)
                each |= _writing(model, run, work, validated, watch, "answer")
        for name, value in each.items():
            found.setdefault(name, {})[layers] = value
        del model
        free()
    return Costs({name: Affine.of(values) for name, values in found.items()}, blueprint.layers)


def _ids(micro: Micro, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and mask of a micro-batch's shape."""
    width = micro.padded // len(micro.sequences)
    ids_BT = torch.ones((len(micro.sequences), width), dtype=torch.long, device=device)
    mask_BT = torch.zeros_like(ids_BT)
    for row, sequence in zip(mask_BT, micro.sequences):
        row[: len(sequence.token_ids)] = 1
    return ids_BT, mask_BT


def _reading(model: Any, micro: Micro, watch: Stopwatch) -> dict[str, float]:
    """Seconds of a token that is read without a gradient, and bytes of keys and values that a token leaves."""
    ids_BT, mask_BT = _ids(micro, watch.device)
    with eval_mode(model), torch.no_grad():
        cache = new_cache(model)
        body_module(model)(input_ids=ids_BT[:1, :2], past_key_values=cache, use_cache=True)
        kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers) / 2
        seconds = watch.seconds(lambda: body(model)(ids_BT, mask_BT))
    return {"kv": kept, "read": seconds / (ids_BT.numel() + read_cost(watch.device).overhead_tokens)}


def _learning(model: Any, blueprint: Blueprint, run: Run, micro: Micro, watch: Stopwatch) -> dict[str, float]:
    """Bytes that autograd keeps of the largest micro-batch, and seconds of a token learned and of an optimiser step."""
    ids_BT, mask_BT = _ids(micro, watch.device)
    model.train(run.resolved_method.objective.policy_gradient is None)
    kept = kept_bytes(model, ids_BT, mask_BT)
    found: dict[str, float] = {"activations": kept}
    if blueprint.gradient_checkpointing:
        found["checkpointed"] = ids_BT.numel() * blueprint.config.get_text_config().hidden_size * 4 * _num_layers(model)
        checkpoint_activations(model)

    def learn() -> None:
        hidden_BTD = body(model)(ids_BT, mask_BT)
        with torch.autocast(watch.device.type, enabled=False):
            hidden_BTD.float().sum().backward()

    found["learn"] = watch.seconds(learn) / (ids_BT.numel() + read_cost(watch.device).overhead_tokens)
    found["update"] = _update_seconds(model, run, watch)
    return found


def _num_layers(model: Any) -> int:
    return int(model.config.get_text_config().num_hidden_layers)


def _update_seconds(model: nn.Module, run: Run, watch: Stopwatch) -> float:
    """Of clipping and the optimiser."""
    settings = run.optimiser
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.AdamW(parameter_groups(model, None, settings), lr=settings.learning_rate, fused=True)

    def update() -> None:
        nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        optimizer.step()

    seconds = watch.seconds(update)
    model.zero_grad(set_to_none=True)
    return seconds


def kept_bytes(model: nn.Module, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> int:
    """Bytes that autograd keeps of a forward pass of the body, each storage once, the model's own weights aside."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> None:
        # Nothing walks back through this graph, and one that was given its own output to keep would never be freed.
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            alive.append(storage)
            kept[storage.data_ptr()] = storage.nbytes()

    alive: list[torch.UntypedStorage] = []  # else a place that was freed would count once for two tensors
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda nothing: nothing):
        hidden_BTD = body(model)(ids_BT, mask_BT)
    del hidden_BTD
    return sum(kept.values())


def _writing(model: Any, run: Run, work: Workload, count: int, watch: Stopwatch, name: str) -> dict[str, float]:
    """Seconds until a batch's first token stands, and of each token after it; `count` sequences at once, as far as allowed."""
    size = min(count, run.training.generation_batch_size) if name == "draft" else count

    def write(prompt: int, tokens: int) -> Callable[[], object]:
        requests = [
            GenerationRequest(prompt_ids=(1,) * prompt, max_new_tokens=tokens, seed=run.seed, stream=(name, row))
            for row in range(size)
            for row in range(size)
        ]
        return lambda: generate(model, requests, Sampling(), end_ids=(-1,), pad_id=0, batch_size=size, vocabulary=None)

    few, many = min(DECODED[0], work.response), min(DECODED[1], work.response)
    middle = max(1, work.prompt + (work.response - many) // 2)  # keys are as many as half-way through a response
    started = watch.seconds(write(work.prompt, 1))
    if many == few:
        return {f"{name} start": started, f"{name} token": 0.0}
    short, long = (watch.seconds(write(middle, tokens), warm=False) for tokens in (few, many))
    return {
        f"{name} start": started,
        f"{name} reopen": min(started, watch.seconds(write(1, 1))),
        f"{name} token": max(0.0, long - short) / (many - few),
    }


# --- the head -----------------------------------------------------------------------------------------------------------


def head_costs(prints: Mapping[Any, Blueprint], run: Run, work: Workload, watch: Stopwatch) -> dict[str, float]:
    """Seconds a row of the vocabulary pass with the run's terms, and of the statistics that revisions are made by."""
    classes = min(blueprint.num_classes for blueprint in prints.values())
    model = prints["student"].sliver(1, run.seed, watch.device)
    taught = prints["teacher"].sliver(1, run.seed + 1, watch.device) if "teacher" in prints else None
    teacher = None if taught is None else LocalTeacher(taught, vocabulary=classes, device=watch.device)
    objective = run.resolved_method.objective
    divergence = objective.build_divergence(classes, run.seed)
    if isinstance(divergence, nn.Module):
        divergence.to(watch.device)
    student = StudentModule(model, vocabulary=classes, divergence=divergence)
    batch = _some_rows(work.largest).collated(run, watch.device)
    compiled = compiles(run.training.compile, classes, watch.device)
    with torch.no_grad(), autocast_of(run, watch.device):
        hidden_ND, student_head = student.rows(batch)
    target = teacher.rows(batch) if teacher is not None and batch.num_sampled else None
    leaf_ND = hidden_ND.detach().requires_grad_()

    def walk() -> None:
        each = terms(objective, Counts.of([batch]), batch, divergence)
        with autocast_of(run, watch.device):
            vocab_pass(leaf_ND, student_head, target, each, compiled=compiled, into_grad=True)

    network = nn.ParameterList(student.clip_network.parameters() if student.clip_network is not None else ())
    found = {
        "walk": watch.seconds(walk) / len(hidden_ND),
        "statistics": 0.0,
        "clip_network": sum(parameter.nbytes for parameter in network),
        "update": _update_seconds(network, run, watch) if len(network) else 0.0,
        "reuses": float(prefixes_can_be_reused(model)),
    }
    if target is not None and work.writing.is_scored:
        num_rows = batch.num_sampled_rows
        uniforms = torch.full((num_rows, NUMBERS_PER_DRAW), 0.5, dtype=torch.float64, device=watch.device)
        scored = watch.seconds(
            lambda: row_statistics(
                hidden_ND[:num_rows], student_head, target, ("reverse_kl", "teacher_sample"), uniforms_NK=uniforms
            )
        )
        found["statistics"] = scored / num_rows
    return found


def _some_rows(micro: Micro) -> Micro:
    """Its first sequences, with about as many rows as are timed; those that carry all terms among them."""
    sampled = [item for item in micro.items if "distillation" in item.roles]
    rest = [item for item in micro.items if "distillation" not in item.roles]
    found: list[DrawItem] = []
    for place in range(max(len(sampled), len(rest))):
        if sum(item.sequence.num_targets for item in found) >= HEAD_ROWS:
            break
        found += [items[place] for items in (sampled, rest) if place < len(items)]
    return Micro(tuple(found), micro.is_corpus)


def head_bytes(blueprint: Blueprint) -> int:
    """Bytes of a float32 copy of the head."""
    text = blueprint.config.get_text_config()
    return int(text.vocab_size * (getattr(text, "word_embed_proj_dim", None) or text.hidden_size) * 4)


def free() -> None:
    """Give back what nothing holds any more, to the system too where that can be asked for."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):  # another C library; what it keeps is a little
        return
