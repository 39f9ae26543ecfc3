"""Every method trains a tiny student of every family for three updates, with and without adapters."""

import math
from pathlib import Path
from typing import Any

import pytest

from redistill.config.methods import METHODS, as_in_reference
from redistill.models.load import ModelConfig, load_model
from redistill.runs.run import train_student
from redistill.storage import files
from tests.worlds import GPT2, LLAMA, tiny_run

WIDE = {**LLAMA, "num_key_value_heads": 2, "head_dim": 8}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": GPT2,
    "opt": {
        "model_type": "opt",
        "hidden_size": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "word_embed_proj_dim": 16,
    },
    "llama": LLAMA,
    "qwen3": {**WIDE, "model_type": "qwen3"},
    "gemma2": {
        **WIDE,
        "model_type": "gemma2",
        "query_pre_attn_scalar": 8,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "final_logit_softcapping": 5.0,
    },
    "gemma3": {
        **WIDE,
        "model_type": "gemma3_text",
        "query_pre_attn_scalar": 8,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
}
# Few roll-outs, and student text from the first update on: all parts of a method must be used within three updates.
SECTIONS: dict[str, dict[str, Any]] = {
    "minillm": {"policy": {"kind": "rollouts", "source": "teacher_mixed", "num_rollouts": 4, "inner_epochs": 2}},
    "distillm": {"policy": {"kind": "adaptive", "threshold": 1.0, "capacity": 4}},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_three_updates(world: Path, method: str, family: str) -> None:
    folder = world / family
    folder.mkdir(exist_ok=True)
    config = tiny_run(
        folder,
        method,
        config=FAMILIES[family],
        out=method,
        training={"updates": 3},
        data={"tokens": {"prompt_tokens": 80, "response_tokens": 6}, "validation_rows": 2},
        **SECTIONS.get(method, {}),
    )
    train_student(config)
    lines = files.read_lines(config.folder / "metrics.jsonl")
    updates = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in updates] == [1, 2, 3]
    assert all(math.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in updates)
    load_model(ModelConfig(model=str(config.folder / "model")))


@pytest.mark.parametrize("method", METHODS)
def test_as_in_the_reference_code(world: Path, method: str) -> None:
    folder = world / "llama"
    folder.mkdir(exist_ok=True)
    config = tiny_run(folder, method, out=f"{method}-compat", training={"updates": 3}, compat="distillm")
    assert config.resolved_method == as_in_reference(method)
    train_student(config)
    updates = [line for line in files.read_lines(config.folder / "metrics.jsonl") if line["kind"] == "train"]
    assert len(updates) == 3 and all(math.isfinite(line["loss"]) for line in updates)


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_adapters_learn_and_are_exported(world: Path, family: str) -> None:
    folder = world / family
    folder.mkdir(exist_ok=True)
    student = {"model": str(folder / "student"), "lora": {"rank": 2, "alpha": 4}}
    config = tiny_run(folder, config=FAMILIES[family], out="lora", training={"updates": 3}, student=student)
    train_student(config)
    step = config.folder / "checkpoints" / "step-3"
    assert (step / "model.safetensors").stat().st_size < (folder / "student" / "model.safetensors").stat().st_size / 2
    model, _ = load_model(ModelConfig(model=str(config.folder / "model")))
    before, _ = load_model(ModelConfig(model=str(folder / "student")))
    changed = [name for name, value in before.state_dict().items() if not value.equal(model.state_dict()[name])]
    assert changed and all("attn" in name for name in changed), changed
