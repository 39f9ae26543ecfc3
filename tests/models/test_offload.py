"""A teacher whose layers are offloaded computes what a whole one computes, and holds one layer at a time."""

import gc
import json
from pathlib import Path

import pytest
import torch

from redistill.config.sections import TeacherConfig
from redistill.contracts import GenerationRequest, Sampling
from redistill.errors import ConfigError, OutputError
from redistill.generation.generate import generate
from redistill.models.families import body, layer_list
from redistill.models.load import parameter_bytes
from redistill.models.offload import device_weights, is_offloaded, offload_layers
from redistill.runs.run import train_student
from redistill.storage import files
from tests.worlds import tiny_run

FAMILIES = ["gpt2", "opt", "llama", "qwen2"]
PLACES = ["cpu", "disk"]


def outputs(model):
    """Hidden states of a padded batch, and sampled texts."""
    ids_BT, mask_BT = torch.arange(3, 15).view(2, 6), torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    requests = [GenerationRequest(prompt_ids=(3, 4, 5 + i), max_new_tokens=9, seed=1, stream=("r", i)) for i in range(3)]
    with torch.no_grad():
        texts = generate(model, requests, Sampling(), end_ids=(2,), pad_id=0, batch_size=2)
        return body(model)(ids_BT, mask_BT)[mask_BT.bool()], texts


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("family", FAMILIES)
def test_results_are_bitwise_those_of_a_whole_model(tiny, tmp_path, family, where):
    model = tiny(family).eval()
    hidden_ND, texts = outputs(model)
    layer_bytes = sum(parameter.nbytes for parameter in layer_list(model)[1].parameters())
    whole, num_layers = parameter_bytes(model), len(layer_list(model)[1])
    offload_layers(model, where, "cpu", tmp_path / "files")
    found_ND, found = outputs(model)
    assert torch.equal(found_ND, hidden_ND) and found == texts
    assert is_offloaded(model) and all(parameter.is_meta for parameter in layer_list(model)[1].parameters())
    assert device_weights(model) == whole - layer_bytes + layer_bytes // num_layers


def test_the_files_are_removed_with_the_model(tiny, tmp_path):
    model, folder = tiny("llama"), tmp_path / "files"
    offload_layers(model, "disk", "cpu", folder)
    assert len(list(folder.iterdir())) == len(layer_list(model)[1])
    del model
    gc.collect()
    assert not folder.exists()


def test_files_that_cannot_be_written_are_an_error(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="the weights of the teacher cannot be written"):
        offload_layers(tiny("llama"), "disk", "cpu", tmp_path / "file" / "files")


def test_a_run_with_an_offloaded_teacher_gives_the_same_student(tmp_path: Path) -> None:
    digests, losses = [], []
    for where in (None, *PLACES):
        model = {"offload": where} if where else {}
        config = tiny_run(tmp_path, "mgsr", out=f"run-{where}", teacher=model, training={"updates": 2})
        digests.append(files.digest(train_student(config) / "model.safetensors"))
        lines = (tmp_path / f"run-{where}" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        losses.append([json.loads(line)["loss"] for line in lines if '"kind": "train"' in line])
    assert len(set(digests)) == 1 and losses[0] == losses[1] == losses[2] and len(losses[0]) == 2


def test_a_quantised_teacher_is_not_offloaded() -> None:
    with pytest.raises(ConfigError, match=r"offload = 'cpu': cannot be combined with quantise = 'nf4'"):
        TeacherConfig(model="gpt2", quantise="nf4", offload="cpu")
