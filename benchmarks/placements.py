"""Memory of the paper's four pairs on one of four GPUs, calculated from the recipes; no model is loaded and nothing measured.

    python -m benchmarks.placements

The table of docs/gpu.md is what this script prints, and recipes have a part of it as a comment.  The calculation is that of
`redistill estimate --processes 4 --memory GB`.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoConfig

from redistill.config.run import Run, override_run
from redistill.config.sections import TeacherConfig
from redistill.estimate.placed import PlacedMemory, placed_memory
from redistill.estimate.recorder import Role
from redistill.estimate.shallow import Blueprint

RECIPES = Path(__file__).parents[1] / "recipes"
GPUS = 4
GIGABYTES = (40, 80)
PHASES = ("loading", "generation", "training", "validation")


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


def memory(run: Run, models: tuple[dict[str, Any], dict[str, Any]], gpu_bytes: int, *, sharded: bool) -> PlacedMemory:
    """The memory of a run on one of `GPUS` GPUs, as `redistill estimate --processes` calculates it."""
    assert isinstance(run.teacher, TeacherConfig)
    configs = [AutoConfig.for_model(**config) for config in models]
    prints: dict[Role, Blueprint] = {
        "teacher": Blueprint(configs[0], configs[0].num_hidden_layers, run.teacher),
        "student": Blueprint(configs[1], configs[1].num_hidden_layers, run.student),
    }
    return placed_memory(run, prints, GPUS, sharded=sharded, memory_bytes=gpu_bytes)


def variants(plain: Run) -> Iterator[tuple[Run, bool]]:
    """The recipe as it is; with a bf16 base for adapters; with a teacher of 8 bits; and sharded."""
    run = plain
    yield run, False
    if plain.student.lora is not None:
        run = replace(plain, student=replace(plain.student, dtype="bfloat16"))
        yield run, False
        assert isinstance(run.teacher, TeacherConfig)
        yield replace(run, teacher=replace(run.teacher, quantise="int8")), False
    yield run, True


@cache
def rows() -> tuple[tuple[str, ...], ...]:
    """Cells of the table."""
    return tuple(_rows())


def _rows() -> Iterator[tuple[str, ...]]:
    for pair, (name, teacher, student) in PAIRS.items():
        plain = recipe(name)
        for run, sharded in variants(plain):
            dtype = getattr(run.teacher, "quantise", None) or getattr(run.teacher, "dtype", "")
            placement = "sharded" if sharded else "auto"
            cells = [pair, "all weights" if run.student.lora is None else "adapters", run.student.dtype, dtype, placement]
            for gigabytes in GIGABYTES:
                found = memory(run, (teacher, student), gigabytes * 10**9, sharded=sharded)
                if gigabytes == GIGABYTES[0]:
                    cells += [f"{found.totals[phase] / 1e9:.1f}" for phase in PHASES]
                cells.append(f"{found.peak_bytes / 1e9:.0f}, {'fits' if found.fits(gigabytes * 10**9) else 'does not fit'}")
            yield tuple(cells)


def statement(pair: str) -> str:
    """The comment of the pair's recipe: placement, precision and memory of each GPU."""
    lines = [f"# Memory of each GPU, model only (docs/gpu.md), with precision {recipe(PAIRS[pair][0]).training.precision}:"]
    for name, _, dtype, taught, placement, *_, small, large in rows():
        if name == pair:
            totals = zip(GIGABYTES, (small, large), strict=True)
            sizes = "; ".join(f"4 x {gigabytes} GB: {total.replace(',', ' GB,')}" for gigabytes, total in totals)
            teacher = "" if taught == "bfloat16" else f" teacher.quantise={taught}"
            lines.append(f"#   student.dtype={dtype}{teacher} placement={placement}: {sizes}")
    return "\n".join(lines) + "\n"


def table() -> str:
    """The table of docs/gpu.md, in GB of one GPU."""
    names = ["pair", "trained", "`student.dtype`", "teacher", "`placement`", *PHASES]
    names += [f"largest, 4 x {gigabytes} GB" for gigabytes in GIGABYTES]
    return "".join(f"| {' | '.join(line)} |\n" for line in (names, ["---"] * len(names), *rows()))


if __name__ == "__main__":
    print(table(), end="")
