"""Exports of runs and models: folders, adapters, names of files, errors of one line."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from redistill.cli.main import main
from redistill.data.tokenize import TokenizeConfig
from redistill.deploy.export import export
from redistill.deploy.source import find_source, tokens_for
from redistill.errors import CheckpointError, ConfigError, ModelError, OutputError
from redistill.models.load import ModelConfig, load_model
from redistill.runs.run import train_student
from redistill.runs.templates import tokens_of
from tests.deploy.models import KINDS, write_kind
from tests.deploy.test_gguf import greedy
from tests.worlds import tiny_run

SHORT = {"training": {"updates": 2, "batch_size": 2, "log_every": 1}}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a trained run."""
    config = tiny_run(tmp_path_factory.mktemp("world"), "kd", **SHORT)
    train_student(config)
    return config.folder


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory):
    """The folder of a run whose adapters are merged into the student."""
    world = tmp_path_factory.mktemp("world")
    config = tiny_run(world, "kd", **SHORT, student={"model": str(world / "student"), "lora": {"rank": 2}})
    train_student(config)
    return config.folder


def texts(folder) -> list[list[int]]:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    return greedy(model, tokenizer)


def test_an_exported_folder_generates_the_text_of_the_student(run):
    found = export(str(run), "transformers")
    assert found.folder == run / "export" / "transformers" and found.command == f"vllm serve {found.folder}"
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md"} <= set(found.files)
    assert texts(found.folder) == texts(run / "model")
    assert tokens_of(str(found.folder)) == tokens_of(str(run)) != TokenizeConfig()
    assert export(str(run), "transformers").files == found.files  # an earlier export is replaced


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_each_family_is_exported_with_its_text(kind, tmp_path):
    folder = write_kind(tmp_path / "model", kind)
    found = export(str(folder), "transformers", tmp_path / "out")
    assert texts(found.folder) == texts(folder)
    assert AutoTokenizer.from_pretrained(found.folder).chat_template == AutoTokenizer.from_pretrained(folder).chat_template


def test_weights_are_cast_to_the_given_dtype(run, tmp_path):
    for name, dtype in (("f16", torch.float16), ("bf16", torch.bfloat16), ("f32", torch.float32)):
        found = export(str(run), "transformers", tmp_path / name, dtype=name)
        weights = load_file(found.folder / "model.safetensors")
        assert {weight.dtype for weight in weights.values()} == {dtype}
        assert json.loads((found.folder / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")


def test_only_known_files_of_a_model_are_exported(run, tmp_path):
    folder = write_kind(tmp_path / "model", "qwen2")
    (folder / "modeling_evil.py").write_text("raise SystemExit")
    (folder / "notes.txt").write_text("secret")
    config = json.loads((folder / "config.json").read_text()) | {"auto_map": {"AutoConfig": "modeling_evil.Evil"}}
    (folder / "config.json").write_text(json.dumps(config))
    found = export(str(folder), "transformers", tmp_path / "out")
    assert not {"modeling_evil.py", "notes.txt"} & set(found.files)
    assert "auto_map" not in json.loads((found.folder / "config.json").read_text())


def test_ollama_gets_a_modelfile_with_the_template_of_the_training(run):
    found = export(str(run), "ollama")
    assert found.files == ("Modelfile", "README.md", "model.gguf") and found.command.startswith("ollama create ")
    text = (found.folder / "Modelfile").read_text()
    assert "### Instruction:" in text and 'PARAMETER stop "<|endoftext|>"' in text


def test_the_model_folder_of_a_run_belongs_to_the_run(run):
    source = find_source(str(run / "model"))
    assert source.run == run.resolve() and source.label == find_source(str(run)).label
    _, tokenizer = load_model(source.config)
    assert tokens_for(source, tokenizer).template == "alpaca"


def test_merged_adapters_are_exported_from_the_best_checkpoint(lora_run, tmp_path):
    found = export(str(lora_run), "adapter", tmp_path / "out")
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= set(found.files)
    merged, student = (
        load_model(ModelConfig(model=str(found.folder)))[0],
        load_model(ModelConfig(model=str(lora_run / "model")))[0],
    )
    for name, weight in student.state_dict().items():
        torch.testing.assert_close(merged.state_dict()[name], weight, msg=name)
    assert any("by a path" in note for note in found.notes)


def test_exported_adapters_are_exported_again(lora_run, tmp_path):
    first = export(str(lora_run), "adapter", tmp_path / "first").folder
    again = export(str(first), "adapter", tmp_path / "again").folder
    one, two = (load_file(folder / "adapter_model.safetensors") for folder in (first, again))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    whole = export(str(first), "transformers", tmp_path / "whole").folder  # merged
    assert texts(whole) == texts(lora_run / "model")


def test_a_student_without_adapters_is_rejected(run, tmp_path):
    for name in (str(run), str(run / "model")):
        with pytest.raises(ModelError, match=r"has no LoRA adapters; .*--to transformers"):
            export(name, "adapter", tmp_path / "out")
    with pytest.raises(ConfigError, match="--dtype f16"):
        export(str(run), "adapter", tmp_path / "out", dtype="f16")


def test_a_folder_with_files_is_not_replaced(run, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="must be a new or an empty folder"):
        export(str(run), "gguf", tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert export(str(run), "gguf", tmp_path / "empty").files == ("README.md", "model.gguf")


def test_a_run_without_a_student_and_a_missing_model_are_rejected(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(CheckpointError, match="has no trained student"):
        export(str(tmp_path), "gguf")
    with pytest.raises(ModelError, match="no such folder"):
        export(str(tmp_path / "missing"), "gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_prints_files_notes_and_the_next_command(run, capsys, tmp_path):
    assert main(["export", str(run), "--to", "ollama", "--out", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"exported: {tmp_path / 'out'} (Modelfile, README.md, model.gguf)"
    assert lines[-1].startswith("use it:   ollama create ")
    assert main(["export", str(run), "--to", "gguf", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["files"] == ["README.md", "model.gguf"] and document["url"] is None
    assert main(["export", str(run), "--to", "adapter"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
