"""Hashes of a model's files: each file changes the part that it belongs to, and no other."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from redistill.errors import ModelError
from redistill.models.load import ModelConfig, load_model, read_config
from redistill.models.model_hashes import model_hashes
from redistill.storage import files
from tests.worlds import LLAMA, write_model

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
PARTS = {"weights", "adapter", "config", "tokenizer", "chat template"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(write_model(tmp_path / "model", LLAMA, 1))


def hashes(model: Path | str, **options: Any) -> dict[str, str]:
    return model_hashes(ModelConfig(model=str(model), **options), files.digest)


def changed(model: Path, change: Callable[[], None], **options: Any) -> set[str]:
    """The parts whose hashes differ after `change`."""
    before = hashes(model, **options)
    change()
    after = hashes(model, **options)
    assert before.keys() == after.keys() == PARTS
    return {part for part in PARTS if before[part] != after[part]}


def edit(path: Path, **fields: Any) -> None:
    held = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**held, **fields}), encoding="utf-8")


def change_a_weight(path: Path) -> None:
    tensors = load_file(path)
    tensors[min(tensors)].view(-1)[0] += 1
    save_file(tensors, path, metadata={"format": "pt"})


CHANGES: dict[str, tuple[Callable[[Path], None], set[str]]] = {
    "a weight": (lambda folder: change_a_weight(folder / "model.safetensors"), {"weights"}),
    "a field of the config": (lambda folder: edit(folder / "config.json", rms_norm_eps=1e-3), {"config"}),
    "end tokens": (lambda folder: edit(folder / "generation_config.json", eos_token_id=[0, 1]), {"config"}),
    "tokens": (lambda folder: edit(folder / "tokenizer.json", normalizer={"type": "NFC"}), {"tokenizer"}),
    "a special token": (lambda folder: edit(folder / "tokenizer_config.json", bos_token="a"), {"tokenizer"}),
    "a new tokenizer file": (lambda folder: edit(folder / "added_tokens.json", new=500), {"tokenizer"}),
    "a template file": (lambda folder: (folder / "chat_template.jinja").write_text(TEMPLATE) and None, {"chat template"}),
    "a template in the config": (
        lambda folder: edit(folder / "tokenizer_config.json", chat_template=TEMPLATE),
        {"chat template"},
    ),
    "the version that wrote it": (lambda folder: edit(folder / "config.json", transformers_version="0.1"), set()),
    "white space": (lambda folder: edit(folder / "config.json"), set()),
    "another format of the weights": (lambda folder: (folder / "pytorch_model.bin").write_bytes(b"1") and None, set()),
    "a page": (lambda folder: (folder / "README.md").write_text("new") and None, set()),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_found_in_its_part_alone(folder: Path, name: str) -> None:
    change, expected = CHANGES[name]
    assert changed(folder, lambda: change(folder)) == expected


def test_copies_of_a_model_have_equal_hashes(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    assert hashes(folder) == hashes(tmp_path / "copy")


def test_every_shard_and_the_index_count(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="30KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    for shard in shards:
        assert changed(folder, lambda path=shard: change_a_weight(path)) == {"weights"}
    assert changed(folder, lambda: edit(folder / "model.safetensors.index.json", metadata={})) == {"weights"}


def test_a_single_file_is_read_and_an_index_beside_it_is_not(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    assert changed(folder, lambda: index.write_text("{}", encoding="utf-8") and None) == set()
    load_model(ModelConfig(model=str(folder)))


@pytest.mark.parametrize("named", ["as model", "as adapter"])
def test_an_adapter_and_its_base_are_hashed(folder: Path, tmp_path: Path, named: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    adapter = tmp_path / "adapter"
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)).save_pretrained(adapter)
    name, options = (adapter, {}) if named == "as model" else (folder, {"adapter": str(adapter)})
    assert changed(name, lambda: change_a_weight(adapter / "adapter_model.safetensors"), **options) == {"adapter"}
    assert changed(name, lambda: edit(adapter / "adapter_config.json", lora_alpha=3), **options) == {"adapter"}
    assert changed(name, lambda: edit(adapter / "adapter_config.json", peft_version="0"), **options) == set()
    assert changed(name, lambda: change_a_weight(folder / "model.safetensors"), **options) == {"weights"}
    assert changed(name, lambda: edit(folder / "tokenizer.json", normalizer={"type": "NFC"}), **options) == {"tokenizer"}
    load_model(ModelConfig(model=str(name), **options))


def test_the_tokenizer_of_an_adapter_is_the_one_that_is_loaded(folder: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    adapter = tmp_path / "adapter"
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(adapter)
    for path in folder.glob("tokenizer*"):
        shutil.copy(path, adapter)
    assert changed(adapter, lambda: edit(folder / "tokenizer.json", normalizer={"type": "NFC"})) == set()
    assert changed(adapter, lambda: edit(adapter / "tokenizer.json", normalizer={"type": "NFC"})) == {"tokenizer"}


def test_a_gguf_file_is_hashed_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF one")
    assert changed(path, lambda: path.write_bytes(b"GGUF two") and None) == {"weights"}


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The local copy of a hub model, in the layout of huggingface_hub: files are links to blobs; main is the first of two."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--owner--name"
    for part in ("blobs", "refs"):
        (repository / part).mkdir(parents=True)
    for commit in ("1" * 40, "2" * 40):
        snapshot = repository / "snapshots" / commit
        shutil.copytree(folder, snapshot)
        if commit.startswith("2"):
            change_a_weight(snapshot / "model.safetensors")
        for path in snapshot.iterdir():
            blob = repository / "blobs" / files.digest(path)
            path.replace(blob)
            path.symlink_to(os.path.relpath(blob, snapshot))
    (repository / "refs" / "main").write_text("1" * 40, encoding="utf-8")
    return repository


def test_a_hub_model_has_the_hashes_of_the_snapshot_that_was_loaded(hub: Path, folder: Path) -> None:
    model, _ = load_model(ModelConfig(model="owner/name"))
    assert hashes("owner/name") == hashes(folder)
    second = hashes("owner/name", revision="2" * 40)
    assert {part for part in PARTS if second[part] != hashes(folder)[part]} == {"weights"}
    # The branch moves while the process runs: the model that was loaded is still the one that is hashed, and loaded.
    (hub / "refs" / "main").write_text("2" * 40, encoding="utf-8")
    assert hashes("owner/name") == hashes(folder)
    again, _ = load_model(ModelConfig(model="owner/name"))
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), again.parameters(), strict=True))
    assert load_model(ModelConfig(model="owner/name", revision="2" * 40))[0].config._commit_hash == "2" * 40


def test_a_hub_model_without_safetensors_files_is_rejected(hub: Path) -> None:
    snapshot = hub / "snapshots" / ("1" * 40)
    (snapshot / "model.safetensors").rename(snapshot / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"owner/name: contains no \.safetensors file; pickled weights are not read"):
        load_model(ModelConfig(model="owner/name"))
    assert read_config(ModelConfig(model="owner/name")).vocab_size > 0


def test_a_changed_blob_of_a_hub_model_changes_its_hash(hub: Path) -> None:
    blob = (hub / "snapshots" / ("1" * 40) / "model.safetensors").resolve()
    assert changed(Path("owner/name"), lambda: change_a_weight(blob)) == {"weights"}


def test_no_temporary_copy_is_hashed(folder: Path) -> None:
    read: list[Path] = []
    model_hashes(ModelConfig(model=str(folder)), lambda path: (read.append(path), files.digest(path))[1])
    assert read and {path.parent for path in read} == {folder}


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors"])
def test_a_model_that_was_removed_is_reported_by_name(folder: Path, lost: str) -> None:
    (folder / lost).unlink()
    with pytest.raises(ModelError, match=f"model: its {lost} was removed after the model was loaded; restore it"):
        hashes(folder)


def test_a_link_that_replaces_a_file_of_the_model_is_not_followed(folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer.json").rename(tmp_path / "outside.json")
    (folder / "tokenizer.json").symlink_to(tmp_path / "outside.json")
    with pytest.raises(ModelError, match=r"model: tokenizer.json is a link to a file outside of the folder"):
        hashes(folder)


@pytest.mark.parametrize(
    "name",
    ["tokenizer.model.v3", "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "tekken.json", "special_tokens_map.json"],
)
def test_files_of_tokenizers_are_known_by_their_names(folder: Path, name: str) -> None:
    assert changed(folder, lambda: edit(folder / f"my_{name}", a=1)) == set()
    assert changed(folder, lambda: edit(folder / name, a=1)) == {"tokenizer"}
