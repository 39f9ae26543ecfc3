"""Training replicated or sharded over two processes equals training in one process."""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

import redistill
from redistill.models.families import body_module, layer_list
from redistill.models.initialise import fresh_model
from redistill.models.load import parameter_bytes
from redistill.processes import placement as placements
from redistill.processes.frozen import FrozenShards
from redistill.processes.placement import Replicated, Sharded, Single, full, placed_like
from redistill.runs.opened import loading_device, make_placement, place_teacher
from redistill.storage import files
from redistill.training import checkpoint
from tests.processes import updates
from tests.worlds import tiny_run

pytestmark = pytest.mark.distributed
every_pair = pytest.mark.parametrize(("placement", "case"), updates.PAIRS)


@pytest.fixture(scope="module", autouse=True)
def _without_gpu():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cases in one and in two processes; the latter are started once, because that takes longest."""
    folder = tmp_path_factory.mktemp("placements")
    singles = [("single", case) for case in updates.CASES]
    for placement, case in [*updates.PAIRS, *singles, ("single", updates.WHOLE_RUN), ("sharded", updates.WHOLE_RUN)]:
        updates.write_recipe(folder, placement, case)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    paths = os.pathsep.join([str(Path(redistill.__file__).parents[1]), str(Path(__file__).parents[2])])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [*launcher, updates.__file__, str(folder), "2"]
    log = folder / "two.log"
    with log.open("w") as out, subprocess.Popen(command, env=environment, stdout=out, stderr=out) as two:
        try:
            updates.main(folder, world=1)
            two.wait(timeout=240)
        finally:
            two.terminate()
    assert two.returncode == 0, log.read_text()[-6000:]
    return folder


def found(folder: Path, placement: str, case: str, kind: str = "") -> dict[str, torch.Tensor]:
    everything = load_file(folder / placement / case / "found.safetensors")
    kinds = ("measured.", "rows.", "teacher_bytes")
    return {
        name: tensor for name, tensor in everything.items() if (name.startswith(kind) if kind else not name.startswith(kinds))
    }


def saved(folder: Path, placement: str, case: str, step: int) -> dict[str, torch.Tensor]:
    tensors = checkpoint.load_step(folder / placement / case / "checkpoints", step).tensors
    return {f"{group}.{name}": tensor for group, members in tensors.items() for name, tensor in members.items()}


def distance(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> float:
    """Norm of the difference of all tensors, relative to that of the expected ones."""
    assert found.keys() == expected.keys()
    left, right = (torch.cat([each[name].flatten().double() for name in sorted(expected)]) for each in (found, expected))
    return float((left - right).norm() / right.norm())


@every_pair
def test_gradients_equal_those_of_one_process(folder: Path, placement: str, case: str) -> None:
    gradients = found(folder, placement, case)
    assert gradients and distance(gradients, found(folder, "single", case)) <= 1e-6


@every_pair
def test_sums_and_norms_equal_those_of_one_process(folder: Path, placement: str, case: str) -> None:
    assert distance(found(folder, placement, case, "measured."), found(folder, "single", case, "measured.")) <= 1e-6


@every_pair
def test_checkpoints_have_the_weights_and_moments_of_one_process(folder: Path, placement: str, case: str) -> None:
    for step, tolerance in ((1, 1e-5), (2, 1e-4)):  # AdamW's first step is a sign, which amplifies noise of small gradients
        assert distance(saved(folder, placement, case, step), saved(folder, "single", case, step)) <= tolerance


@every_pair
def test_a_checkpoint_loads_into_one_process_and_gives_the_same_logits(folder: Path, placement: str, case: str) -> None:
    recipe = updates.write_recipe(folder, f"{placement}-resumed", case)
    with updates.opened(recipe) as parts:
        assert torch.equal(found(folder, placement, case, "rows.")["rows.before"], updates.rows_of(parts))
        updates.restore(parts, folder / placement / case, 1)
        assert torch.equal(found(folder, placement, case, "rows.")["rows.after"], updates.rows_of(parts))
        model = parts.learner.student.model
        resumed = {name: tensor.clone() for name, tensor in full(model.state_dict(keep_vars=True)).items()}
        updates.update(parts, 1)
        updates.save(parts, recipe, 2)
        again = saved(folder, f"{placement}-resumed", case, 2)
        assert distance(again, saved(folder, placement, case, 2)) <= 1e-5
        assert any(not torch.equal(tensor, model.state_dict()[name]) for name, tensor in resumed.items())


@pytest.mark.parametrize("case", [case for case in updates.CASES if "-sft" not in case])
def test_a_process_of_two_has_about_half_of_the_teacher(folder: Path, case: str) -> None:
    name = "teacher_bytes"
    sharded, single = (int(found(folder, placement, case, name)[name]) for placement in ("sharded", "single"))
    assert 0.5 * single <= sharded <= 0.6 * single


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_device_never_has_a_whole_model_while_it_is_loaded(monkeypatch, role: str) -> None:
    """The bytes on the device are those of the unit that FSDP moves, and of the shards so far."""
    from torch.distributed.fsdp._fully_shard import _fsdp_init
    from torch.testing._internal.distributed.fake_pg import FakeStore

    model = fresh_model({**updates.LLAMA, "num_hidden_layers": 8, "vocab_size": 64, "tie_word_embeddings": False}, seed=1)
    whole, layers = parameter_bytes(model), layer_list(model)[1]
    largest = max(sum(p.nbytes for p in layers[0].parameters()), whole - sum(p.nbytes for p in layers.parameters()))
    moved: list[int] = []
    usual = _fsdp_init._move_states_to_device

    def move(parameters, buffers, device) -> None:
        shards = sum(p.to_local().nbytes for p in model.parameters() if isinstance(p, DTensor))
        moved.append(shards + sum(p.nbytes for p in parameters))
        usual(parameters, buffers, device)

    monkeypatch.setattr(_fsdp_init, "_move_states_to_device", move)
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, device: pytest.fail("the whole module was moved"))
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    try:
        if role == "student":
            Sharded(lambda module: layer_list(module)[1]).wrap(model, "cpu")
        else:
            FrozenShards(model.requires_grad_(False), body_module(model), layers, "cpu")
    finally:
        torch.distributed.destroy_process_group()
    assert len(moved) == 9 and max(moved) <= whole / 4 + largest < 0.6 * whole


def test_models_that_will_be_sharded_are_read_to_the_cpu(tmp_path: Path) -> None:
    run, device = tiny_run(tmp_path, "kd"), torch.device("cuda", 0)
    sharded = replace(run, placement="sharded")
    read = [loading_device(config, world, device) for config in (run, sharded) for world in (1, 2)]
    assert read == [device, device, device, torch.device("cpu")]


@pytest.mark.parametrize("teacher", [{"quantise": "int8"}, {"offload": "cpu"}])
def test_a_quantised_or_offloaded_teacher_stays_whole(tmp_path: Path, teacher: dict[str, str]) -> None:
    run = tiny_run(tmp_path, "kd", placement="sharded", teacher={"model": str(tmp_path / "teacher"), **teacher})
    models = SimpleNamespace(teacher=torch.nn.Linear(1, 1), states=None)
    assert place_teacher(run, models, Sharded(lambda module: ()), torch.device("cpu")).world == 1


def test_tied_weights_are_stored_once(folder: Path) -> None:
    for case, times in (("llama-tied-sft", 1), ("llama-untied-sft", 2)):
        tensors = checkpoint.load_step(folder / "sharded" / case / "checkpoints", 1).tensors["model"]
        assert len({tensors[name].data_ptr() for name in ("model.embed_tokens.weight", "lm_head.weight")}) == times


def test_a_complete_sharded_run_equals_that_of_one_process(folder: Path) -> None:
    """Generation, revision, spans, validation, evaluation before training and export."""
    sharded, single = (folder / placement / updates.WHOLE_RUN for placement in ("sharded", "single"))
    assert files.read_json(sharded / "run.json")["processes"] == 2
    lines = [files.read_lines(run / "metrics.jsonl") for run in (sharded, single)]
    kinds = [[line["kind"] for line in each] for each in lines]
    assert kinds[0] == kinds[1] and kinds[0].count("train") == 2
    for ours, expected in zip(*lines, strict=True):
        assert (ours["step"], ours.get("origin")) == (expected["step"], expected.get("origin"))
        assert ours.keys() == expected.keys()
        for name in expected.keys() & {"loss", "sft", "divergence", "span", "grad_norm", "cross_entropy", "kl"}:
            assert ours[name] == pytest.approx(expected[name], rel=1e-4), name
    assert answers(sharded / "before") == answers(single / "before")
    assert distance(saved(*_of(sharded), 2), saved(*_of(single), 2)) <= 1e-4
    models = [load_file(run / "model" / "model.safetensors") for run in (sharded, single)]
    assert distance(*models) <= 1e-4


def _of(run: Path) -> tuple[Path, str, str]:
    return run.parents[1], run.parent.name, run.name


def answers(folder: Path) -> list[Any]:
    return [line for path in sorted((folder / "responses").iterdir()) for line in files.read_lines(path)]


def test_full_keeps_ties_and_drops_gradients() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    tensors = full({"one": weight, "other": weight})
    assert tensors["one"] is tensors["other"] and not tensors["one"].requires_grad
    assert placed_like(tensors["one"], weight) is tensors["one"]


def test_one_process_is_never_sharded() -> None:
    assert type(make_placement(1, "sharded")) is type(make_placement(1, "auto")) is Single
    assert isinstance(make_placement(2, "sharded"), Sharded) and isinstance(make_placement(2, "auto"), Replicated)


@pytest.mark.parametrize(("bucket_bytes", "messages"), [(0, 5), (4 * 100, 4), (4 * 1000, 2)])
def test_gradients_are_summed_in_buckets(monkeypatch, bucket_bytes, messages):
    """Two processes have equal gradients, so the sum is twice the gradient.  A bucket has one dtype."""
    sent = []
    monkeypatch.setattr(placements, "BUCKET_BYTES", bucket_bytes)
    monkeypatch.setattr(placements.distributed, "all_reduce", lambda tensor: (sent.append(tensor.nbytes), tensor.mul_(2))[1])
    shapes = ((5, 3), (70,), (9, 20), (4,), (2, 2))
    parameters = [torch.nn.Parameter(torch.randn(shape, dtype=torch.bfloat16 if shape == (2, 2) else None)) for shape in shapes]
    gradients = [torch.randn_like(parameter) for parameter in parameters]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    parameters[0].grad = parameters[0].grad.T.contiguous().T  # not contiguous
    Replicated().reduce([*parameters, torch.nn.Parameter(torch.ones(1))])
    assert len(sent) == messages and sum(sent) == sum(gradient.nbytes for gradient in gradients)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        assert torch.equal(parameter.grad, 2 * gradient)
