"""Calculates the memory of a process of a job, for replicated and sharded models.

Nothing is executed and no weight is read: the sizes are those of the models on torch's device "meta".  All phases of a run are
calculated, because a sharded student has all of its parameters in each process while it generates text.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from redistill.config.run import Run
from redistill.config.sections import TeacherConfig
from redistill.data.grouping import ACCELERATOR, CPU
from redistill.estimate.recorder import Role
from redistill.estimate.shallow import Blueprint
from redistill.generation.prefix import DEVICE_PART as PREFIX_PART
from redistill.generation.prefix import MEMORY_BYTES
from redistill.models.activations import activation_bytes, reading_bytes, token_limit
from redistill.models.families import head, layer_list, text_config
from redistill.models.load import parameter_bytes
from redistill.policies.revised import Revised
from redistill.vocab_pass.cutting import DEVICE_PART, LEAST_CHUNK_BYTES, chunk_budget

Parts = dict[str, int]
USABLE = 0.92
"""Fraction of a GPU's memory that tensors can use, without the CUDA context and fragmentation.  It was not measured."""
MOMENTS = 2
"""Tensors of AdamW for each trained weight."""
GATHERED_LAYERS = 2
"""Layers of a sharded model that are complete during a forward pass: one computes, and the next one is gathered."""


class Weights(NamedTuple):
    """Sizes of the weights of a model, in bytes.

    Args:
        total: All weights.
        root: The weights outside of the layers, such as embeddings and head.
        layer: The largest layer.
        parts: Number of processes over which the weights are sharded; 1 if every process has all weights.
    """

    total: int
    root: int
    layer: int
    parts: int

    @property
    def resident(self) -> int:
        """Bytes that a process always has."""
        return -(-self.total // self.parts)

    @property
    def loading(self) -> int:
        """Additional bytes while the weights are moved to the device."""
        return max(self.root, self.layer) if self.parts > 1 else 0

    @property
    def reading(self) -> int:
        """Additional bytes during a forward pass."""
        return self.root + GATHERED_LAYERS * self.layer if self.parts > 1 else 0

    @property
    def whole(self) -> int:
        """Additional bytes while each process has all weights."""
        return self.total if self.parts > 1 else 0


@dataclass(frozen=True, kw_only=True)
class PlacedMemory:
    """Calculated memory of one process.

    Args:
        phases: For each phase, its parts in bytes.  The phases are "loading", "generation", "training" and "validation".
        tokens: Maximum number of tokens of a micro-batch.
    """

    phases: Mapping[str, Parts]
    tokens: int

    @property
    def totals(self) -> dict[str, int]:
        """The sum of the parts of each phase, in bytes."""
        return {name: sum(parts.values()) for name, parts in self.phases.items()}

    @property
    def largest_phase(self) -> str:
        """Name of the phase that needs most memory."""
        return max(self.totals, key=self.totals.__getitem__)

    @property
    def peak_bytes(self) -> int:
        """Memory of the largest phase."""
        return self.totals[self.largest_phase]

    def fits(self, memory_bytes: int) -> bool:
        """Return whether the largest phase fits into the usable part of a device's memory."""
        return self.peak_bytes <= USABLE * memory_bytes


def placed_memory(
    run: Run, prints: Mapping[Role, Blueprint], processes: int, *, sharded: bool, memory_bytes: int | None
) -> PlacedMemory:
    """Calculate the memory of one process of a job.

    Args:
        run: The run.
        prints: Configuration of the student, and of the teacher if it is loaded.
        processes: Number of processes, >= 1.
        sharded: Whether the models are sharded over the processes, as with `placement: sharded`.
        memory_bytes: Memory of the accelerator of the process; None without an accelerator.

    Returns:
        The memory by phase.  The memory of torch, of the CUDA context and of fragmentation is not included.  All texts are
        assumed to have the maximum length.
    """
    return _Calculation(run, prints, processes, sharded and processes > 1, memory_bytes).result()


class _Calculation:
    """The sizes that several phases use."""

    def __init__(
        self, run: Run, prints: Mapping[Role, Blueprint], processes: int, sharded: bool, memory_bytes: int | None
    ) -> None:
        self.run, self.processes, self.memory_bytes = run, processes, memory_bytes
        self.parts = processes if sharded else 1
        self.student = prints["student"].empty(run.seed)
        self.teacher = prints["teacher"].empty(run.seed) if "teacher" in prints else None
        node = run.teacher
        can_shard = isinstance(node, TeacherConfig) and node.quantise is None and node.offload is None
        self.weights = _weights(self.student, prints["student"], self.parts)
        self.taught = Weights(0, 0, 0, 1)
        if self.teacher is not None:
            self.taught = _weights(self.teacher, prints["teacher"], self.parts if can_shard else 1)
            if isinstance(node, TeacherConfig) and node.offload is not None:
                self.taught = self.taught._replace(total=self.taught.root + self.taught.layer)
        trained = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        self.trained = sum(parameter.nbytes for parameter in trained)
        is_bf16 = run.training.precision == "bf16"
        self.copies = is_bf16 and run.student.dtype == "float32"
        self.item_bytes = 2 if is_bf16 or run.student.dtype == "bfloat16" else 4
        self.text_tokens = run.data.tokens.prompt_tokens + run.data.tokens.response_tokens
        self.sequences = -(-run.training.batch_size // processes)

    def result(self) -> PlacedMemory:
        """Return the memory of all phases."""
        tokens = self._micro_tokens()
        phases = {
            "loading": {
                "student": self.weights.resident,
                "teacher": self.taught.resident,
                "gathered": max(self.weights.loading, self.taught.loading),
            },
            "generation": self._generation(),
            "training": self._training(tokens),
            "validation": self._validation(),
        }
        return PlacedMemory(
            phases={name: {part: size for part, size in parts.items() if size} for name, parts in phases.items()}, tokens=tokens
        )

    def _resident(self) -> Parts:
        """Memory of all phases after loading."""
        moments = -(-MOMENTS * self.trained // self.parts)
        return {"student": self.weights.resident, "teacher": self.taught.resident, "optimiser": moments}

    def _micro_tokens(self) -> int:
        """Return the number of tokens of a micro-batch, as `runs.build.max_tokens` and `grouping.grouped` limit it."""
        own, size = self.sequences * self.text_tokens, self.run.training.micro_batch_size
        if size is not None:
            return min(own, size * self.text_tokens)
        if self.memory_bytes is None:
            return min(own, CPU.max_tokens)
        occupied = self.weights.resident + (1 + MOMENTS) * self.trained // self.parts + self.taught.resident
        token_bytes = activation_bytes(self.student, self.item_bytes)
        return min(own, ACCELERATOR.max_tokens, token_limit(self.memory_bytes, occupied, token_bytes))

    def _training(self, tokens: int) -> Parts:
        """Memory of forward and backward passes."""
        trained_layers = [_trained_bytes(layer) for layer in layer_list(self.student)[1]]
        gathered = self.weights.reading + self.taught.reading
        if self.parts > 1:  # gradients of the root and of a layer are complete before they are sharded
            gathered += self.trained - sum(trained_layers) + max(trained_layers)
        return {
            **self._resident(),
            "gradients": -(-self.trained // self.parts),
            "gathered": gathered,
            "bf16 copies": self._copies(),
            "activations": tokens * activation_bytes(self.student, self.item_bytes),
            "vocabulary pass": self._vocabulary_pass(),
            "prefix memory": self._prefix_memory()[1],
        }

    def _generation(self) -> Parts:
        """Memory while texts are generated, and corrected by the teacher."""
        policy = self.run.resolved_method.policy
        with_teacher = policy.needs.teacher_text or policy.needs.mixture or policy.needs.replacement
        if policy.sampling is None and not with_teacher:
            return self._resident()
        ahead = self.run.engine.interval if hasattr(self.run.engine, "interval") else 1
        rows = min(self.run.training.generation_batch_size, self.sequences * ahead)
        tokens = rows * self.text_tokens
        return {
            **self._resident(),
            "gathered": self.weights.whole + (self.taught.whole if with_teacher else self.taught.reading),
            "bf16 copies": self._copies_without_gradient(),
            "KV cache": tokens * (self._kv_bytes(self.student) + (self._kv_bytes(self.teacher) if with_teacher else 0)),
            "activations": self._reading(tokens),
            "vocabulary pass": self._vocabulary_pass() if policy.needs.statistics else 0,
            "prefix memory": sum(self._prefix_memory()),
        }

    def _validation(self) -> Parts:
        """Memory while validation answers are generated, and gold answers are scored."""
        rows = min(self.run.evaluation.batch_size, -(-self.run.data.validation_rows // self.processes))
        return {
            **self._resident(),
            "gathered": self.weights.whole + self.taught.reading,
            "bf16 copies": self._copies_without_gradient(),
            "KV cache": rows * self.text_tokens * self._kv_bytes(self.student),
            "activations": self._reading(rows * self.text_tokens),
            "vocabulary pass": self._vocabulary_pass(),
        }

    def _copies(self) -> int:
        """Memory of the bf16 copies of float32 weights that autograd keeps."""
        if not self.copies:
            return 0
        if self.run.student.lora is not None and self.run.student.gradient_checkpointing:
            return (self.trained + self.weights.root + self.weights.layer) // 2
        return self.weights.total // 2

    def _copies_without_gradient(self) -> int:
        """Memory of the bf16 copies of float32 weights: autocast keeps those of trained weights only."""
        return (self.trained + self.weights.layer) // 2 if self.copies else 0

    def _reading(self, tokens: int) -> int:
        """Memory of a forward pass without gradient: the student's and the teacher's are made one after another."""
        models = [self.student] if self.teacher is None else [self.student, self.teacher]
        return tokens * max(reading_bytes(model, self._item_bytes(model)) for model in models)

    def _vocabulary_pass(self) -> int:
        if self.memory_bytes is None:
            return chunk_budget(4 * head(self.student).weight_VD.numel())
        return max(LEAST_CHUNK_BYTES, self.memory_bytes // DEVICE_PART)

    def _prefix_memory(self) -> tuple[int, int]:
        """Return the sizes of the prefix memories of student and teacher."""
        rounds = _rounds(self.run.resolved_method.policy)
        occupied = sum(self._resident().values()) + self.weights.whole
        usable = 0 if self.memory_bytes is None else round(USABLE * self.memory_bytes)
        limit = MEMORY_BYTES if self.memory_bytes is None else max(0, usable - occupied) // PREFIX_PART
        sizes = list[int]()
        for model, texts in ((self.student, rounds + 1), (self.teacher, rounds)):  # the last revision is not scored
            state = 0 if model is None else self._kv_bytes(model) + head(model).weight_VD.shape[1] * self._item_bytes(model)
            sizes.append(min(limit, texts * self.sequences * self.text_tokens * state) if rounds else 0)
        return sizes[0], sizes[1]

    def _item_bytes(self, model: nn.Module) -> int:
        return self.item_bytes if model is self.student else head(model).weight_VD.element_size()

    def _kv_bytes(self, model: nn.Module | None) -> int:
        """Return the bytes of keys and values of one token."""
        if model is None:
            return 0
        config = text_config(model)
        heads = getattr(config, "num_attention_heads", None)
        if not heads:  # a model without attention has states of a fixed, small size
            return 0
        size = getattr(config, "head_dim", None) or head(model).weight_VD.shape[1] // heads
        kept = getattr(config, "num_key_value_heads", None) or heads
        return 2 * len(layer_list(model)[1]) * int(kept * size) * self._item_bytes(model)


def _weights(model: nn.Module, blueprint: Blueprint, parts: int) -> Weights:
    """Return the sizes of the weights of a model; `parts` is the number of processes over which they are sharded."""
    layers = [parameter_bytes(layer) for layer in layer_list(model)[1]]
    saved = round(blueprint.bytes_saved(model))
    return Weights(
        parameter_bytes(model) - saved, parameter_bytes(model) - sum(layers), max(layers) - saved // len(layers), parts
    )


def _rounds(policy: object) -> int:
    """Return the number of revisions of a sequence; 0 if the policy revises no text."""
    if isinstance(policy, Revised):
        return policy.rounds
    return _rounds(policy.source) if hasattr(policy, "source") else 0


def _trained_bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters() if parameter.requires_grad)
