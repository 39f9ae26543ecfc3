"""One flipped bit anywhere in the newest checkpoint: it is found, and the run goes on from the one before to the same end."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from redistill.config.run import Run
from redistill.runs.run import train_student
from redistill.storage import files
from redistill.training import checkpoint
from tests.faults.counts import trials
from tests.faults.remains import remains
from tests.worlds import GPT2, tiny_run

POLICY = {"kind": "adaptive", "threshold": 0.9, "capacity": 4}
TRAINING = {"updates": 3, "batch_size": 4, "save_every": 1, "keep": 2}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run with DAC-KL's network and a replay buffer, whose last two checkpoints stand."""
    config = tiny_run(tmp_path_factory.mktemp("flips"), config=GPT2, policy=POLICY, training=TRAINING)
    train_student(config)
    return config


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(data)


def places(newest: Path, count: int) -> list[tuple[Path, int]]:
    """Random places: half of them anywhere in the bytes of all files together, half of them in each file as often."""
    random = np.random.default_rng(0)
    paths = sorted(newest.iterdir())
    sizes = np.array([path.stat().st_size for path in paths])
    shares = sizes / sizes.sum()
    chosen = [*random.choice(len(paths), size=count // 2, p=shares), *(i % len(paths) for i in range(count - count // 2))]
    return [(paths[i], int(random.integers(8 * sizes[i]))) for i in chosen]


def test_every_flipped_bit_is_found_and_the_older_checkpoint_taken(trained: Run) -> None:
    folder = trained.folder / "checkpoints"
    assert checkpoint.steps(folder) == [2, 3]
    newest = folder / "step-3"
    assert {path.name for path in newest.iterdir()} == {
        "model.safetensors",
        "optimizer.safetensors",
        "clip_network.safetensors",
        "policy.safetensors",
        "state.json",
        "manifest.json",
        "manifest.sha256",
    }
    missed = []
    for path, bit in places(newest, trials(20, 200)):
        flip(path, bit)
        found = checkpoint.load(folder)
        if found is None or found.step != 2 or len(found.skipped) != 1:
            missed.append((path.name, bit))
        flip(path, bit)
    assert missed == []
    found = checkpoint.load(folder)
    assert found is not None and found.step == 3 and found.skipped == ()


def test_a_run_goes_on_from_the_older_checkpoint_to_the_same_end(
    trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = remains(trained.folder)
    for number, (path, bit) in enumerate(places(trained.folder / "checkpoints" / "step-3", trials(1, 10))):
        out = shutil.copytree(trained.folder, tmp_path / str(number))
        flip(out / path.relative_to(trained.folder), bit)
        files.write_json(out / "run.json", {**files.read_json(out / "run.json"), "status": "running"})
        shutil.rmtree(out / "model")
        train_student(tiny_run(trained.folder.parent, config=GPT2, out=str(out), policy=POLICY, training=TRAINING))
        assert "resumed from step-2" in capsys.readouterr().err
        assert remains(out) == whole, (path.name, bit)


def test_a_flipped_bit_in_the_identity_is_no_obstacle(tmp_path: Path) -> None:
    checkpoint.write_identity(tmp_path, {"training data": "a"})
    size = (tmp_path / checkpoint.IDENTITY).stat().st_size
    for bit in np.random.default_rng(0).choice(8 * size, size=trials(20, 200), replace=False):
        flip(tmp_path / checkpoint.IDENTITY, int(bit))
        assert checkpoint.identity(tmp_path) == {}
        checkpoint.write_identity(tmp_path, {"training data": "a"})
        assert checkpoint.identity(tmp_path) == {"training data": "a"}
