"""`accelerate launch` starts a job as torchrun does; what it requests beside that is rejected in one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from redistill.config.run import encode_run
from redistill.errors import ConfigError
from redistill.runs.launcher import check_launcher, launcher_note
from redistill.storage import files
from tests.training.test_trackers import FAKE_WANDB, calls
from tests.worlds import tiny_run

CPU = {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"}


@pytest.mark.parametrize("plugin", ["DEEPSPEED", "FSDP", "MEGATRON_LM"])
def test_a_plugin_of_accelerate_is_rejected(plugin: str) -> None:
    with pytest.raises(ConfigError, match=rf"accelerate launch --use_{plugin.lower()}: .*placement=sharded"):
        check_launcher({f"ACCELERATE_USE_{plugin}": "true"})
    check_launcher({f"ACCELERATE_USE_{plugin}": "false", "ACCELERATE_MIXED_PRECISION": "bf16"})


def test_an_accumulation_of_gradients_is_rejected() -> None:
    check_launcher({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1"})
    with pytest.raises(ConfigError, match=r"training\.micro_batch_size"):
        check_launcher({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"})


def test_a_single_process_of_a_job_of_several_is_noted() -> None:
    assert "--multi_gpu" in (launcher_note(1, CPU) or "")
    assert launcher_note(2, CPU) is None
    assert launcher_note(1, {"ACCELERATE_USE_CPU": "True"}) is None and launcher_note(1, {"MASTER_ADDR": "x"}) is None


def test_accelerate_launch_trains_as_torchrun_and_rank_0_alone_has_trackers(tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    (packages / "wandb.py").write_text(FAKE_WANDB, encoding="utf-8")
    config = tiny_run(tmp_path, "kd", training={"updates": 2}, tracking={"to": ["wandb"]})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(encode_run(config)), encoding="utf-8")
    accelerate = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--num_processes", "2"]
    accelerate += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    models = []
    for launcher in (accelerate, torchrun):
        out = tmp_path / launcher[1]
        _launch([*launcher, "-m", "redistill", "train", str(tmp_path / "recipe.yaml"), "--out", str(out)], packages)
        assert files.read_json(out / "run.json")["processes"] == 2
        models.append(files.digest(out / "model" / "model.safetensors"))
    assert models[0] == models[1]
    assert {call[-1] for call in calls(packages)} == {"0"}
    assert [call[2] for call in calls(packages) if call[0] == "log"] == [0, 1, 2, 2] * 2


def _launch(arguments: list[str], packages: Path) -> None:
    """Run Python with the arguments; tests of several processes need no GPU."""
    paths = os.pathsep.join([str(packages), *filter(None, sys.path)])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
