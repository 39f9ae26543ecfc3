"""Checks of the settings that `accelerate launch` passes in environment variables.

`accelerate launch` starts processes as torchrun does.  Its plugins for sharding (DeepSpeed ZeRO, FSDP, Megatron-LM) are not
supported: the setting `placement` shards the models.
"""

import os
from collections.abc import Mapping

from redistill.errors import ConfigError

_PLUGINS = {
    "ACCELERATE_USE_DEEPSPEED": "--use_deepspeed",
    "ACCELERATE_USE_FSDP": "--use_fsdp",
    "ACCELERATE_USE_MEGATRON_LM": "--use_megatron_lm",
}


def check_launcher(environment: Mapping[str, str] = os.environ) -> None:
    """Check that `accelerate launch` has no option that redistill does not support.

    Raises:
        ConfigError: DeepSpeed, FSDP, Megatron-LM or gradient accumulation is requested.
    """
    for variable, option in _PLUGINS.items():
        if _is_true(environment.get(variable)):
            raise ConfigError(
                f"accelerate launch {option}: is not supported; use --multi_gpu, or torchrun, and set placement=sharded to "
                "shard the student"
            )
    if environment.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1") != "1":
        raise ConfigError(
            "accelerate launch --gradient_accumulation_steps: is not supported; use training.batch_size for the sequences of "
            "an update, and training.micro_batch_size for those of one pass"
        )


def launcher_note(num_processes: int, environment: Mapping[str, str] = os.environ) -> str | None:
    """Return a note if `accelerate launch --cpu` started only one process; else None.

    With --cpu, the launcher ignores the number of processes.

    Args:
        num_processes: Number of processes of the job.
        environment: Environment variables, by name.
    """
    if num_processes > 1 or not _is_true(environment.get("ACCELERATE_USE_CPU")) or "MASTER_ADDR" not in environment:
        return None
    return (
        "accelerate launch --cpu always starts one process, and ignores --num_processes; for several processes, use "
        "--multi_gpu, which needs no GPU, or torchrun --nproc-per-node N"
    )


def _is_true(value: str | None) -> bool:
    return (value or "").lower() in ("1", "true", "yes", "y", "t", "on")
