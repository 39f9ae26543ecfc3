"""`accelerate launch` starts a job as torchrun does; what it requests beside that is rejected in one line."""

import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env

from redistill.config.run import encode_run
from redistill.errors import ConfigError
from redistill.runs.launcher import check_launcher, launcher_note
from redistill.storage import files
from tests.training.test_trackers import FAKE_WANDB, calls
from tests.worlds import tiny_run

CONFIGS = Path(__file__).parents[2] / "recipes" / "accelerate"
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
    accelerate = ["-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / "cpu.yaml")]
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


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_packaged_configuration_starts_processes_and_sets_nothing_else(path: Path) -> None:
    arguments = launch_command_parser().parse_args(["--config_file", str(path), "-m", "redistill"])
    parsed, defaults, _ = _validate_launch_command(arguments)
    assert parsed.multi_gpu and not parsed.use_cpu and defaults.num_processes % parsed.num_machines == 0
    check_launcher(prepare_multi_gpu_env(parsed))
    assert f"--config_file recipes/accelerate/{path.name}" in path.read_text(encoding="utf-8")


def test_two_machines_start_the_same_command_and_train_as_one(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, "kd", training={"updates": 2})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(encode_run(config)), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = ["-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / "two-machines.yaml"), "--num_processes", "2"]
    command += ["--main_process_ip", "127.0.0.1", "--main_process_port", port]
    recipe = ["-m", "redistill", "train", str(tmp_path / "recipe.yaml"), "placement=sharded"]
    with ThreadPoolExecutor() as both:
        done = [both.submit(_launch, [*command, "--machine_rank", rank, *recipe], tmp_path) for rank in "10"]
        assert [each.result() for each in done] == [None, None]
    assert files.read_json(tmp_path / "run" / "run.json")["processes"] == 2


def _launch(arguments: list[str], packages: Path) -> None:
    """Run Python with the arguments; tests of several processes need no GPU."""
    paths = os.pathsep.join([str(packages), *filter(None, sys.path)])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
