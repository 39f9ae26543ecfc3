"""Memory of the paper's four pairs on one of four GPUs, calculated from the recipes; no model is loaded and nothing measured.

    python -m benchmarks.placements

The table of docs/gpu.md is what this script prints, and recipes have a part of it as a comment.  Micro-batches and the limit
of the vocabulary pass are those that a run chooses on such a GPU.  The lengths are those of a sequence of prompt and answer
at their limits.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

from redistill.config.run import Run, override_run
from redistill.data.grouping import ACCELERATOR
from redistill.models.activations import activation_bytes, token_limit
from redistill.models.families import head, layer_list
from redistill.models.load import parameter_bytes
from redistill.models.lora import add_lora
from redistill.models.recompute import checkpoint_activations
from redistill.vocab_pass.cutting import DEVICE_PART

RECIPES = Path(__file__).parents[1] / "recipes"
GPUS = 4
GIGABYTES = (40, 80)
USABLE = 0.92
"""Fraction of a GPU's memory that tensors can use, without the CUDA context and fragmentation.  It was not measured."""


def llama(width: int, inner: int, layers: int, heads: int) -> dict[str, Any]:
    sizes = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads}
    return {"model_type": "llama", "vocab_size": 32_000, "tie_word_embeddings": False, **sizes}


def opt(width: int, layers: int) -> dict[str, Any]:
    sizes = {"hidden_size": width, "ffn_dim": 4 * width, "num_hidden_layers": layers, "word_embed_proj_dim": width}
    return {"model_type": "opt", "vocab_size": 50_272, "num_attention_heads": 32, **sizes}


def gpt2(width: int, layers: int, heads: int) -> dict[str, Any]:
    return {"model_type": "gpt2", "n_embd": width, "n_layer": layers, "n_head": heads}


PAIRS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "GPT-2 1.5B -> 0.1B": ("table1-gpt2", gpt2(1600, 48, 25), gpt2(768, 12, 12)),
    "OPT 6.7B -> 1.3B": ("table1-opt", opt(4096, 32), opt(2048, 24)),
    "OpenLLaMA 7B -> 3B": ("table1-openllama2", llama(4096, 11_008, 32, 32), llama(3200, 8640, 26, 32)),
    "Llama 2 13B -> 7B": ("table1-llama2", llama(5120, 13_824, 40, 40), llama(4096, 11_008, 32, 32)),
}


def recipe(name: str) -> Run:
    """The run of the base of a sweep's recipe, with method mgsr."""
    tree = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))["base"]
    if isinstance(tree, str):
        tree = yaml.safe_load((RECIPES / f"{tree}.yaml").read_text(encoding="utf-8"))
    return override_run({**tree, "name": name, "method": "mgsr"}, (), name)


def empty(config: dict[str, Any], dtype: str) -> Any:
    """A model without weights."""
    with torch.device("meta"):
        kind = torch.bfloat16 if dtype == "bfloat16" else torch.float32
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=kind)


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU in the training phase.

    Args:
        parts: The bytes by part.
        tokens: Tokens of a micro-batch.
    """

    parts: dict[str, int]
    tokens: int

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def memory(run: Run, models: tuple[dict[str, Any], dict[str, Any]], gpu_bytes: int, *, sharded: bool) -> Memory:
    """The memory of a run on one of `GPUS` GPUs."""
    assert run.teacher is not None and not isinstance(run.teacher, str)
    teacher, student = empty(models[0], getattr(run.teacher, "dtype", "float32")), empty(models[1], run.student.dtype)
    if run.student.gradient_checkpointing:
        checkpoint_activations(student)
    frozen = parameter_bytes(student)
    if run.student.lora is not None:
        student = add_lora(student, run.student.lora, run.seed)
        trained = sum(4 * parameter.numel() for parameter in student.parameters() if parameter.requires_grad)
        weights = frozen + trained
    else:
        trained, weights = frozen, frozen
    states = 3 * trained  # gradients, and two moments of AdamW
    gathered = 0
    if sharded:
        root = [head(student).weight_VD, *layer_list(student)[1][0].parameters()]
        gathered = sum(parameter.nbytes for parameter in root)
        weights, states = weights // GPUS, states // GPUS
    is_bf16 = run.training.precision == "bf16"
    copies = parameter_bytes(student) // 2 if is_bf16 and run.student.dtype == "float32" else 0
    tokens = run.data.tokens.prompt_tokens + run.data.tokens.response_tokens
    occupied = parameter_bytes(teacher) + weights + states
    token_bytes = activation_bytes(student, 2 if is_bf16 else 4)
    allowed = min(ACCELERATOR.max_tokens, token_limit(gpu_bytes, occupied, token_bytes))
    own = run.training.batch_size // GPUS * tokens
    micro = run.training.micro_batch_size
    micro_tokens = min(own, allowed if micro is None else micro * tokens)
    parts = {
        "teacher": parameter_bytes(teacher),
        "student": weights,
        "gradients and optimiser": states,
        "bf16 copies": copies,
        "gathered": gathered,
        "activations": micro_tokens * token_bytes,
        "vocabulary pass": gpu_bytes // DEVICE_PART,
    }
    return Memory(parts, micro_tokens)


def rows() -> Iterator[tuple[str, ...]]:
    """Cells of the table: the recipe as it is, a bf16 base for adapters, and both sharded."""
    for pair, (name, teacher, student) in PAIRS.items():
        plain = recipe(name)
        lowered = replace(plain, student=replace(plain.student, dtype="bfloat16"))
        best = plain if plain.student.lora is None else lowered
        variants = dict.fromkeys(((plain.student.dtype, "auto"), (best.student.dtype, "auto"), (best.student.dtype, "sharded")))
        for dtype, placement in variants:
            run = plain if dtype == plain.student.dtype else lowered
            cells = [pair, "all weights" if run.student.lora is None else "adapters", dtype, placement]
            for gigabytes in GIGABYTES:
                found = memory(run, (teacher, student), gigabytes * 10**9, sharded=placement == "sharded")
                if gigabytes == GIGABYTES[0]:
                    cells += [f"{found.parts[part] / 1e9:.1f}" for part in ("teacher", "student", "activations")]
                fits = "fits" if found.total <= USABLE * gigabytes * 10**9 else "does not fit"
                cells.append(f"{found.total / 1e9:.0f}, {fits}")
            yield tuple(cells)


def statement(pair: str) -> str:
    """The comment of the pair's recipe: placement, precision and memory of each GPU."""
    lines = [f"# Memory of each GPU, model only (docs/gpu.md), with precision {recipe(PAIRS[pair][0]).training.precision}:"]
    for name, _, dtype, placement, *_, small, large in rows():
        if name == pair:
            totals = zip(GIGABYTES, (small, large), strict=True)
            sizes = "; ".join(f"4 x {gigabytes} GB: {total.replace(',', ' GB,')}" for gigabytes, total in totals)
            lines.append(f"#   student.dtype={dtype} placement={placement}: {sizes}")
    return "\n".join(lines) + "\n"


def table() -> str:
    """The table of docs/gpu.md, in GB of one GPU."""
    names = ["pair", "trained", "`student.dtype`", "`placement`", "teacher", "student", "activations"]
    names += [f"total, 4 x {gigabytes} GB" for gigabytes in GIGABYTES]
    return "".join(f"| {' | '.join(line)} |\n" for line in (names, ["---"] * len(names), *rows()))


if __name__ == "__main__":
    print(table(), end="")
