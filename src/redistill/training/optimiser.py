"""AdamW: configuration, parameter groups, and learning rates."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from redistill.errors import ConfigError
from redistill.processes.placement import gathered


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
    r"""AdamW and its learning rate schedule.

    .. math:: \eta_t = \eta_{end} + (\eta_{peak} - \eta_{end}) \begin{cases} t / W & t < W \\
        \frac12 \Bigl(1 + \cos \frac{\pi (t - W)}{T - W}\Bigr) & t \ge W \end{cases}

    eta_t is the learning rate of the next update when t of T updates are done.  eta_peak is the peak learning rate, eta_end is
    `final_learning_rate`, and W is `warmup_updates`.  In a constant schedule the second case is 1.  With eta_end = 0, these are
    the schedules of transformers' `get_cosine_schedule_with_warmup` and `get_constant_schedule_with_warmup`.

    The clip network is the network of DAC-KL that predicts which classes are kept.  The paper is MGSR (arXiv 2407.10068).

    Args:
        learning_rate: Peak learning rate of the student, > 0; the paper's value is 5e-4.
        final_learning_rate: Learning rate at the end of the cosine schedule, >= 0.  It must not exceed the peak learning
            rates of the student and of the clip network.
        clip_network_learning_rate: Peak learning rate of the clip network, > 0; if None, it is the student's peak learning
            rate, as in the paper.
        schedule: "cosine" decay to final_learning_rate over all updates after the warm-up, or "constant".
        warmup_updates: Number of updates of linear warm-up from final_learning_rate, >= 0; DistiLLM's public code has none.
        weight_decay: Decoupled weight decay of matrices, >= 0; vectors (biases, norms) have none.
        betas: Decay rates of AdamW's moment estimates, each in [0, 1).
        max_grad_norm: Maximum norm of the student's gradient, > 0.  The gradient of the clip network is clipped separately,
            so that a large gradient of one does not reduce that of the other.

    Raises:
        ConfigError: a value is out of range.

    Example:
        >>> OptimiserConfig(learning_rate=1e-4).final_learning_rate
        1e-07
        >>> OptimiserConfig(learning_rate=0.0)
        Traceback (most recent call last):
            ...
        redistill.errors.ConfigError: learning_rate = 0.0: must be > 0 and finite
    """

    learning_rate: float = 5e-4
    final_learning_rate: float = 1e-7
    clip_network_learning_rate: float | None = None
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_updates: int = 0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        for name in ("learning_rate", "max_grad_norm", "clip_network_learning_rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name} = {value}: must be > 0 and finite")
        lowest = min(self.learning_rate, self.clip_network_learning_rate or self.learning_rate)
        if not 0 <= self.final_learning_rate <= lowest:
            raise ConfigError(
                f"final_learning_rate = {self.final_learning_rate}: must lie in [0, {lowest}], the lowest peak learning rate"
            )
        for name in ("weight_decay", "warmup_updates"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} = {getattr(self, name)}: must be >= 0 and finite")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas = {list(self.betas)}: both must lie in [0, 1)")


def set_learning_rates(optimizer: torch.optim.Optimizer, config: OptimiserConfig, step: int, updates: int) -> dict[str, float]:
    """Set the learning rates for the next update; `step` updates are done.

    `updates` is the number of updates of the run.  Returns the rates by name, for the log.  The rates depend only on the
    arguments.
    """
    fraction = _fraction_of_peak(config, step, updates)
    for group in optimizer.param_groups:
        peak = group["peak_learning_rate"]
        group["lr"] = config.final_learning_rate + (peak - config.final_learning_rate) * fraction
    return {group["rate_name"]: group["lr"] for group in optimizer.param_groups}


def _fraction_of_peak(config: OptimiserConfig, step: int, updates: int) -> float:
    """Return where the learning rate lies between the final rate (0) and the peak rate (1)."""
    warmup = config.warmup_updates
    if step < warmup:
        return step / warmup
    if config.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, updates - warmup)))


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> torch.Tensor:
    """Clip the gradients of `parameters` in place; return the norm before clipping.

    The norm is a float64 tensor without dimensions on the device of the gradients, so that the host need not wait for it.
    After clipping, the norm of all gradients together is at most `max_norm`.  Either all parameters or none must be
    sharded.
    """
    return gathered(nn.utils.clip_grad_norm_(parameters, max_norm)).double()


def parameter_groups(student: nn.Module, clip_network: nn.Module | None, config: OptimiserConfig) -> list[dict[str, object]]:
    """Return the trainable parameters as parameter groups for AdamW.

    Weight decay applies to matrices only.  The clip network is the network of DAC-KL that predicts which classes are kept.
    Its parameters have groups of their own, since their learning rate may differ.
    """
    clip_ids = set() if clip_network is None else set(map(id, clip_network.parameters()))
    clip_rate = config.clip_network_learning_rate or config.learning_rate
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in student.parameters():
        if parameter.requires_grad:
            groups.setdefault((id(parameter) in clip_ids, parameter.ndim >= 2), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": config.weight_decay if is_matrix else 0.0,
            "peak_learning_rate": clip_rate if is_clip else config.learning_rate,
            "rate_name": "clip_network_learning_rate" if is_clip else "learning_rate",
        }
        for (is_clip, is_matrix), parameters in groups.items()
    ]
