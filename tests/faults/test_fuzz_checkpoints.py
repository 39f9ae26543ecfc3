"""Whatever a checkpoint or a cache holds, even one whose hashes are right: it is read, or refused in one typed line."""

import contextlib
import hashlib
import json
import shutil
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from redistill.losses.divergences import Taid
from redistill.policies import Adaptive
from redistill.processes.memory import Halving
from redistill.storage import files
from redistill.storage.cache import ARRAYS, MANIFEST, Stored, cached
from redistill.storage.tensors import read_tensors
from redistill.storage.user_cache import cache_folder
from redistill.training import checkpoint
from redistill.training.curriculum import Curriculum
from redistill.training.guards import CollapseMonitor, EarlyStopping, GuardConfig, UpdateGuard
from redistill.training.metrics import MetricsLog
from redistill.training.parts import TrainingState
from redistill.training.saving import log_size, restore_checkpoint, save_checkpoint
from tests.faults.crafted import crafted, sound, tensors_file
from tests.faults.noise import changed, fuzzed, read_or_refused, written_json
from tests.policies.fixture import PolicyFixture, make_fixture

# --- tensors ------------------------------------------------------------------------------------------------------------


@given(crafted())
@fuzzed("safetensors")
def test_any_header_of_tensors(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    found = read_or_refused(lambda: read_tensors(path))
    assert found is None or all(isinstance(tensor, torch.Tensor) for tensor in found.values())


def test_the_sound_header_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(tensors_file(sound(), bytes(16)))
    assert sorted(read_tensors(path)) == ["a", "b", "c"]


@given(st.data(), st.sampled_from([checkpoint.MANIFEST, checkpoint.STATE, checkpoint.IDENTITY]))
@fuzzed("a checkpoint")
def test_any_checkpoint_even_one_that_is_sealed_anew(tmp_path: Path, data: st.DataObject, name: str) -> None:
    mine = {"training data": "f00d"}
    checkpoint.write_identity(tmp_path, mine)
    folder = checkpoint.save(tmp_path, 3, tensors={"model": {"w": torch.ones(2)}}, state={"a": 1}, keep=1)
    path = tmp_path / name if name == checkpoint.IDENTITY else folder / name
    try:
        text = data.draw(written_json(json.loads(path.read_text())))
        write_sealed(path, text.encode("utf-8", "surrogatepass"), folder)
        read_or_refused(lambda: checkpoint.load(tmp_path))
        read_or_refused(lambda: checkpoint.check_identity(tmp_path, mine))
    finally:
        (tmp_path / checkpoint.IDENTITY).unlink()


def write_sealed(path: Path, data: bytes, folder: Path) -> None:
    """`data` as a file of a checkpoint, with every hash as it should be, as whoever can write files would have it."""
    if path.name == checkpoint.IDENTITY:
        with contextlib.suppress(ValueError, RecursionError, TypeError, LookupError):
            tree = json.loads(data)
            run = json.dumps(tree["run"], indent=2, ensure_ascii=False) + "\n"
            tree["sha256"] = hashlib.sha256(run.encode("utf-8", "backslashreplace")).hexdigest()
            data = json.dumps(tree).encode()
    path.write_bytes(data)
    if path.name not in (checkpoint.MANIFEST, checkpoint.IDENTITY):
        held = json.loads((folder / checkpoint.MANIFEST).read_text())
        held["files"][path.name] = {"bytes": path.stat().st_size, "sha256": files.digest(path)}
        (folder / checkpoint.MANIFEST).write_text(json.dumps(held))
    sealed = hashlib.sha256((folder / checkpoint.MANIFEST).read_bytes()).hexdigest()
    (folder / checkpoint.SEAL).write_text(f"{sealed}  {checkpoint.MANIFEST}\n")


# --- the cache ----------------------------------------------------------------------------------------------------------


@given(st.data())
@fuzzed("a cached array")
def test_any_entry_of_the_cache_is_read_or_computed_again(data: st.DataObject) -> None:
    made, notes = Stored({"a": np.arange(3)}, {"b": 1}), list[str]()
    folder = cache_folder() / "fuzz" / "f00d"
    shutil.rmtree(folder, ignore_errors=True)
    cached("fuzz", "f00d", lambda: made, report=notes.append)
    manifest = json.loads((folder / MANIFEST).read_text())
    if data.draw(st.booleans()):
        (folder / ARRAYS).write_bytes(data.draw(crafted()))
        manifest["sha256"] = files.digest(folder / ARRAYS)
        (folder / MANIFEST).write_text(json.dumps(manifest))
    else:
        (folder / MANIFEST).write_text(data.draw(written_json(manifest)), encoding="utf-8", errors="replace")
    found = cached("fuzz", "f00d", lambda: made, report=notes.append)
    assert all(isinstance(array, np.ndarray) for array in found.arrays.values()) and isinstance(found.about, dict)
    assert all(note.startswith("note: ") and "\n" not in note for note in notes)


# --- the state of training ----------------------------------------------------------------------------------------------


TENSORS = ("model.safetensors", "optimizer.safetensors", "policy.safetensors")


@pytest.fixture(scope="module")
def fixture() -> PolicyFixture:
    return make_fixture()


def parts(fixture: PolicyFixture, folder: Path) -> Any:
    """What a checkpoint restores: a model of four weights, its optimizer after one update, a policy and guards."""
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    student = SimpleNamespace(model=model, clip_network=None, named_parameters=model.named_parameters)
    policy = fixture.policy(Adaptive(threshold=1.0, capacity=8))
    policy.observe(1.0)
    guard, curriculum = UpdateGuard(GuardConfig(), folder=folder), Curriculum(Taid(), updates=3)
    curriculum.observe(0, 1.0)
    return SimpleNamespace(
        learner=SimpleNamespace(student=student, clip_parameters=[], optimizer=optimizer, curriculum=curriculum),
        policy=policy,
        schedule=SimpleNamespace(updates=3),
        guards=SimpleNamespace(
            update=guard,
            collapse=CollapseMonitor(GuardConfig(), print),
            early_stopping=EarlyStopping(patience=3),
            sizes=(Halving("micro_batch_size", 4), Halving("generation_batch_size", 4)),
        ),
        output=SimpleNamespace(checkpoints=folder / "checkpoints", logs=[MetricsLog(folder / "metrics.jsonl")]),
        accelerator=SimpleNamespace(is_main_process=True, wait_for_everyone=lambda: None),
    )


@pytest.fixture(scope="module")
def saved(fixture: PolicyFixture, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of these parts, after the policy has drawn sequences."""
    folder = tmp_path_factory.mktemp("saved")
    trained = parts(fixture, folder)
    for step in range(3):
        trained.policy.draw(step)
    save_checkpoint(trained, SimpleNamespace(keep=1), TrainingState(step=3, best_step=3, best_score=0.5))
    return folder


def change_state(folder: Path, data: st.DataObject) -> None:
    """Change the JSON of a checkpoint, its part of the policy alone, or the header of one of its files of tensors."""
    path = folder / data.draw(st.sampled_from([checkpoint.STATE, checkpoint.STATE, *TENSORS]))
    if path.name == checkpoint.STATE:
        tree = json.loads(path.read_text())
        if data.draw(st.booleans()):
            part = data.draw(
                st.sampled_from(["policy", "policy_entries", "optimizer", "training", "guard", "memory", "log_bytes"])
            )
            text = json.dumps({**tree, part: data.draw(changed({part: tree[part]})).get(part)})
        else:
            text = data.draw(written_json(tree))
        write_sealed(path, text.encode("utf-8", "surrogatepass"), folder)
        return
    held = path.read_bytes()
    [length] = struct.unpack("<Q", held[:8])
    header = data.draw(changed(json.loads(held[8 : 8 + length])))
    write_sealed(path, tensors_file(header, held[8 + length :]), folder)


@given(st.data())
@fuzzed("state of training")
def test_any_state_of_training(fixture: PolicyFixture, saved: Path, data: st.DataObject) -> None:
    [folder] = (saved / "checkpoints").iterdir()
    before = {path: path.read_bytes() for path in folder.iterdir()}
    try:
        change_state(folder, data)
        fresh = parts(fixture, saved)
        found = read_or_refused(lambda: checkpoint.load(folder.parent))
        restored = None if found is None else read_or_refused(lambda: restore_checkpoint(fresh, found))
        if restored is not None:
            assert all(isinstance(getattr(restored, name), int) for name in ("step", "trained_tokens", "generated_tokens"))
            files.json_bytes(fresh.guards.update.state_dict())
            read_or_refused(lambda: log_size(found, fresh.output.logs[0]))
    finally:
        for path, held in before.items():
            path.write_bytes(held)
