"""Checkpoints: state is restored bitwise, damage is detected, and an interrupted save loses nothing."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from redistill.errors import CheckpointError, OutputError
from redistill.storage import files
from redistill.training import checkpoint


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2))


def adamw(model: nn.Module, *, fused: bool = True, learning_rate: float = 0.01) -> torch.optim.AdamW:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [
        {"params": matrices, "weight_decay": 0.01, "rate_name": "learning_rate"},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), fused=fused)


def update(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    inputs = torch.from_numpy(np.random.default_rng(step).normal(size=(5, 3))).float()
    optimizer.zero_grad()
    model(inputs).square().mean().backward()
    optimizer.step()


def save(folder: Path, step: int, *, keep: int = 10, protect: tuple[int, ...] = ()) -> Path:
    weight = torch.arange(12.0).reshape(3, 4) + step
    return checkpoint.save(
        folder, step, tensors={"model": {"weight": weight}}, state={"training": {"step": step}}, keep=keep, protect=protect
    )


# --- round trips --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [True, False])
def test_training_after_a_round_trip_is_bitwise_equal(tmp_path: Path, fused: bool) -> None:
    model = network()
    optimizer = adamw(model, fused=fused)
    for step in range(3):
        update(model, optimizer, step)
    optimizer.param_groups[0]["lr"] = 0.1 / 3  # a schedule has moved it
    tensors, state = checkpoint.optimizer_tensors(optimizer, dict(model.named_parameters()))
    groups = {"model": model.state_dict(), "optimizer": tensors}
    checkpoint.save(tmp_path, 3, tensors=groups, state={"optimizer": state}, keep=1)

    found = checkpoint.load(tmp_path)
    assert found is not None and found.step == 3
    other = network()
    other.load_state_dict(found.tensors["model"])
    restored = adamw(other, fused=fused, learning_rate=1.0)
    names = dict(other.named_parameters())
    checkpoint.restore_optimizer(restored, names, found.tensors["optimizer"], found.state["optimizer"])

    again, _ = checkpoint.optimizer_tensors(restored, names)
    assert tensors.keys() == again.keys()
    assert {key.split("/")[0] for key in tensors} == {"step", "exp_avg", "exp_avg_sq"}
    for key, value in tensors.items():
        assert value.dtype == again[key].dtype and torch.equal(value, again[key]), key
    for before, after in zip(optimizer.param_groups, restored.param_groups, strict=True):
        assert {**before, "params": ()} == {**after, "params": ()}
    for step in range(3, 5):
        update(model, optimizer, step)
        update(other, restored, step)
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_restored_optimizer_does_not_write_into_the_checkpoint(tmp_path: Path) -> None:
    model = network()
    optimizer = adamw(model)
    update(model, optimizer, 0)
    names = dict(model.named_parameters())
    tensors, state = checkpoint.optimizer_tensors(optimizer, names)
    frozen = {key: value.clone() for key, value in tensors.items()}
    restored = adamw(model)
    checkpoint.restore_optimizer(restored, names, frozen, state)
    update(model, restored, 1)
    assert frozen["step/0.weight"] == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
def test_tensors_are_restored_bitwise(tmp_path: Path, dtype: torch.dtype) -> None:
    raw = np.random.default_rng(1).integers(0, 256, size=64, dtype=np.uint8)
    tensor = torch.from_numpy(raw % 2 if dtype == torch.bool else raw).view(dtype)
    cases = {"flat": tensor, "turned": tensor.reshape(2, -1).T, "scalar": tensor[0], "empty": tensor[:0]}
    checkpoint.save(tmp_path, 0, tensors={"model": cases}, state={}, keep=1)
    found = checkpoint.load_step(tmp_path, 0)
    for name, value in cases.items():
        back = found.tensors["model"][name]
        assert back.dtype == dtype and back.shape == value.shape
        assert back.contiguous().flatten().view(torch.uint8).tolist() == value.contiguous().flatten().view(torch.uint8).tolist()


def test_the_state_is_restored_exactly(tmp_path: Path) -> None:
    state = {"rate": 0.1 / 3, "big": 2**127 - 1, "none": None, "text": "caf\u00e9 \ud800 \u2028", "list": [1, [2.5]]}
    checkpoint.save(tmp_path, 7, tensors={}, state=state, keep=1)
    found = checkpoint.load(tmp_path)
    assert found is not None and dict(found.state) == state


def test_tied_tensors_are_stored_once_and_restored_tied(tmp_path: Path) -> None:
    embedding = torch.randn(100, 10, generator=torch.Generator().manual_seed(0))
    plain = checkpoint.save(tmp_path / "one", 0, tensors={"model": {"wte": embedding}}, state={}, keep=1)
    tied = checkpoint.save(tmp_path / "two", 0, tensors={"model": {"wte": embedding, "head": embedding}}, state={}, keep=1)
    assert (tied / "model.safetensors").stat().st_size < (plain / "model.safetensors").stat().st_size + 100
    tensors = checkpoint.load_step(tmp_path / "two", 0).tensors["model"]
    assert torch.equal(tensors["head"], embedding) and tensors["head"].data_ptr() == tensors["wte"].data_ptr()


def test_overlapping_views_are_restored_separately(tmp_path: Path) -> None:
    whole = torch.arange(6.0)
    cases = {"whole": whole, "front": whole[:4], "back": whole[2:], "square": whole[:4].reshape(2, 2)}
    checkpoint.save(tmp_path, 0, tensors={"model": cases}, state={}, keep=1)
    tensors = checkpoint.load_step(tmp_path, 0).tensors["model"]
    for name, value in cases.items():
        assert torch.equal(tensors[name], value), name


# --- damage -------------------------------------------------------------------------------------------------------------


def test_every_flipped_bit_is_detected_and_the_older_checkpoint_loaded(tmp_path: Path) -> None:
    save(tmp_path, 3)
    newest = save(tmp_path, 4)
    paths = sorted(newest.iterdir())
    assert {path.name for path in paths} == {"model.safetensors", "state.json", "manifest.json", "manifest.sha256"}
    for path in paths:
        sound = path.read_bytes()
        for bit in np.random.default_rng(0).choice(8 * len(sound), size=50, replace=False):
            damaged = bytearray(sound)
            damaged[bit // 8] ^= 1 << (bit % 8)
            path.write_bytes(damaged)
            found = checkpoint.load(tmp_path)
            assert found is not None and found.step == 3, (path.name, bit)
        path.write_bytes(sound)
    found = checkpoint.load(tmp_path)
    assert found is not None and found.step == 4 and found.skipped == ()


@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "manifest.json", "manifest.sha256"])
@pytest.mark.parametrize("damage", ["delete", "cut", "empty"])
def test_a_truncated_or_missing_file_is_detected(tmp_path: Path, name: str, damage: str) -> None:
    save(tmp_path, 3)
    path = save(tmp_path, 4) / name
    data = path.read_bytes()
    path.unlink() if damage == "delete" else path.write_bytes(data[: len(data) // 2] if damage == "cut" else b"")
    found = checkpoint.load(tmp_path)
    assert found is not None and found.step == 3 and len(found.skipped) == 1
    with pytest.raises(CheckpointError, match="step-4"):
        checkpoint.load_step(tmp_path, 4)


def test_skipped_lists_the_faulty_file_and_the_loaded_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    for step in (300, 400, 500):
        save(folder, step)
    (folder / "step-400" / "model.safetensors").write_bytes(b"x")
    (folder / "step-500" / "state.json").unlink()
    found = checkpoint.load(folder)
    assert found is not None and found.skipped == (
        "checkpoints/step-500: state.json cannot be read (No such file or directory); resumed from step-300",
        "checkpoints/step-400: model.safetensors does not match its manifest; resumed from step-300",
    )


def test_a_checkpoint_with_the_name_of_another_step_is_skipped(tmp_path: Path) -> None:
    shutil.copytree(save(tmp_path, 3), tmp_path / "step-9")
    found = checkpoint.load(tmp_path)
    assert found is not None and found.step == 3 and "step-3" in found.skipped[0]


def test_only_damaged_checkpoints_are_an_error_and_no_checkpoint_is_not(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path / "nowhere") is None
    assert checkpoint.load(tmp_path) is None
    (save(tmp_path, 1) / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"step-1: state\.json"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("schema", [checkpoint.SCHEMA - 1, checkpoint.SCHEMA + 1])
def test_another_schema_is_rejected_not_skipped(tmp_path: Path, schema: int) -> None:
    save(tmp_path, 3)
    folder = save(tmp_path, 4)
    manifest = json.loads((folder / "manifest.json").read_text())
    files.write_json(folder / "manifest.json", {**manifest, "schema": schema})
    files.write_text(folder / "manifest.sha256", f"{files.digest(folder / 'manifest.json')}  manifest.json\n")
    with pytest.raises(CheckpointError, match=rf"step-4: has schema {schema}; .* resumes schema {checkpoint.SCHEMA} only"):
        checkpoint.load(tmp_path)


def test_a_missing_group_or_state_is_an_error_with_its_name(tmp_path: Path) -> None:
    save(tmp_path, 4)
    found = checkpoint.load_step(tmp_path, 4)
    with pytest.raises(CheckpointError, match=r"step-4: has no 'optimizer' \(it has model\)"):
        found.tensors["optimizer"]
    with pytest.raises(CheckpointError, match=r"state\.json: has no 'policy' \(it has training\)"):
        found.state["policy"]
    with pytest.raises(CheckpointError, match=r"has no step-5 \(saved steps: 4\)"):
        checkpoint.load_step(tmp_path, 5)


def test_an_optimizer_of_other_parameters_is_rejected() -> None:
    model = network()
    optimizer = adamw(model)
    update(model, optimizer, 0)
    names = dict(model.named_parameters())
    tensors, state = checkpoint.optimizer_tensors(optimizer, names)
    with pytest.raises(CheckpointError, match=r"only one of them, first '0\.bias'"):
        renamed = {f"head.{name}": parameter for name, parameter in names.items()}
        checkpoint.restore_optimizer(adamw(model), renamed, tensors, state)
    with pytest.raises(CheckpointError, match="their groups differ"):
        swapped = torch.optim.AdamW([{"params": group["params"]} for group in reversed(optimizer.param_groups)])
        checkpoint.restore_optimizer(swapped, names, tensors, state)
    with pytest.raises(CheckpointError, match=r"'exp_avg/0\.bias' is missing"):
        fewer = {key: value for key, value in tensors.items() if key != "exp_avg/0.bias"}
        checkpoint.restore_optimizer(adamw(model), names, fewer, state)


# --- interrupted saves and pruning --------------------------------------------------------------------------------------


def test_a_killed_save_is_ignored_and_removed_by_the_next(tmp_path: Path) -> None:
    folder = save(tmp_path, 3)
    killed = tmp_path / f"{files.TEMPORARY}step-4-abc"
    shutil.copytree(folder, killed)
    found = checkpoint.load(tmp_path)
    assert found is not None and found.step == 3 and found.skipped == ()
    assert killed.exists()  # it might be another process's save in progress
    save(tmp_path, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-3", "step-4"]


def test_a_failed_save_keeps_older_checkpoints_and_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 3, keep=1)

    def disk_full(path: Path, value: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_json", disk_full)
    with pytest.raises(OutputError, match="No space left"):
        save(tmp_path, 4, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-3"]
    found = checkpoint.load(tmp_path)
    assert found is not None and found.step == 3


def test_nothing_is_pruned_when_the_new_checkpoint_cannot_be_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 3, keep=1)
    written = files.write_json

    def bad_disk(path: Path, value: object) -> str:
        if path.name == "manifest.json":
            (path.parent / "state.json").write_text("{}")
        return written(path, value)

    monkeypatch.setattr(files, "write_json", bad_disk)
    with pytest.raises(OutputError, match=r"state\.json does not match its manifest, although it was just written"):
        save(tmp_path, 4, keep=1)
    assert checkpoint.steps(tmp_path) == [3, 4]


def test_the_newest_are_kept_and_the_protected_one(tmp_path: Path) -> None:
    for step in (100, 200, 300, 400, 1000):
        save(tmp_path, step, keep=2, protect=(200,))
    assert checkpoint.steps(tmp_path) == [200, 400, 1000]
    save(tmp_path, 1100, keep=1)
    assert checkpoint.steps(tmp_path) == [1100]


def test_damaged_checkpoints_ahead_of_a_resumed_run_are_removed(tmp_path: Path) -> None:
    for step in (100, 200):
        save(tmp_path, step)
    (tmp_path / "step-200" / "state.json").unlink()
    save(tmp_path, 150, keep=2)
    assert checkpoint.steps(tmp_path) == [100, 150]


def test_saving_the_same_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 5)
    checkpoint.save(tmp_path, 5, tensors={}, state={"training": "again"}, keep=1)
    found = checkpoint.load(tmp_path)
    assert found is not None and found.state["training"] == "again" and not found.tensors
    assert [path.name for path in tmp_path.iterdir()] == ["step-5"]


# --- identity of the run ------------------------------------------------------------------------------------------------


def test_every_manifest_has_the_identity_of_its_run(tmp_path: Path) -> None:
    assert checkpoint.identity(tmp_path) == {}
    checkpoint.write_identity(tmp_path, {"config": "a", "training data": "b"})
    manifest = files.read_json(save(tmp_path, 3) / "manifest.json")
    assert manifest["schema"] == checkpoint.SCHEMA and manifest["step"] == 3
    assert manifest["run"] == {"config": "a", "training data": "b"} == checkpoint.identity(tmp_path)


def test_checkpoints_of_other_data_are_rejected(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    checkpoint.write_identity(folder, {"config": "a", "training data": "b"})
    with pytest.raises(
        CheckpointError, match="checkpoints: its checkpoints belong to a run with different training data; restore the"
    ):
        checkpoint.write_identity(folder, {"config": "a", "training data": "c"})
    assert checkpoint.identity(folder) == {"config": "a", "training data": "b"}


def test_a_checkpoint_copied_from_another_run_is_skipped(tmp_path: Path) -> None:
    for name in ("mine", "theirs"):
        checkpoint.write_identity(tmp_path / name, {"training data": name})
    save(tmp_path / "mine", 3)
    shutil.copytree(save(tmp_path / "theirs", 4), tmp_path / "mine" / "step-4")
    found = checkpoint.load(tmp_path / "mine")
    assert found is not None and found.step == 3
    assert found.skipped == ("mine/step-4: it belongs to a run with different training data; resumed from step-3",)


def test_hashes_of_only_one_version_are_ignored(tmp_path: Path) -> None:
    save(tmp_path, 3)  # by a version without identities
    checkpoint.write_identity(tmp_path, {"training data": "b"})
    checkpoint.write_identity(tmp_path, {"corpus": "c"})
    assert checkpoint.identity(tmp_path) == {"training data": "b", "corpus": "c"}
    found = checkpoint.load(tmp_path)
    assert found is not None and found.step == 3 and found.skipped == ()
