"""Limits of the staleness of text, by method.

The staleness of text is the age of the weights that generated it, in updates.
"""

import math

from redistill.config.methods import Method
from redistill.generation.local import LocalEngineConfig
from redistill.generation.vllm import VllmEngineConfig
from redistill.losses.divergences import ByOrigin, ForwardKL, SkewForwardKL
from redistill.policies.rollouts import Rollouts
from redistill.training.objective import Objective

FORWARD_KL_LIMIT = 15
"""Largest staleness, in updates, with forward KL: the teacher minimises it on any text, also on text of old weights."""
OTHER_LIMIT = 3
"""Largest staleness with other objectives.  Reverse KL and policy gradients assume text of the current student."""


def staleness_limit(objective: Objective) -> int:
    """Return the largest staleness that an objective accepts, in updates.

    Example:
        >>> from redistill.config.methods import METHODS
        >>> staleness_limit(METHODS["imitkd"].objective), staleness_limit(METHODS["opd"].objective)
        (15, 3)
    """
    divergence = objective.divergence
    parts = divergence.parts.values() if isinstance(divergence, ByOrigin) else (divergence,)
    is_forward = all(isinstance(part, ForwardKL | SkewForwardKL) for part in parts)
    return FORWARD_KL_LIMIT if is_forward and objective.policy_gradient is None else OTHER_LIMIT


def staleness_fault(row: Method, engine: object, batch_size: int) -> str | None:
    """Return why the text of an engine is too old for a method.

    Args:
        row: The method.
        engine: The settings of the engine.
        batch_size: Number of training examples of an update.

    Returns:
        One line with a remedy; None if the text is not too old, or if the engine is not part of this package.

    Example:
        >>> from redistill.config.methods import METHODS
        >>> staleness_fault(METHODS["imitkd"], LocalEngineConfig(ahead=16), 8)
        >>> staleness_fault(METHODS["opd"], LocalEngineConfig(ahead=16), 8)  # doctest: +ELLIPSIS
        'engine.ahead = 16: the weights that generate text would be up to 15 updates old; with this objective they may be 3...'
    """
    if not isinstance(engine, LocalEngineConfig | VllmEngineConfig) or row.policy.sampling is None:
        return None
    name = "every" if isinstance(engine, VllmEngineConfig) and engine.every > engine.ahead else "ahead"
    oldest = engine.interval - 1
    if isinstance(row.policy, Rollouts):  # text is generated at the first update of a pool only
        pool = max(1, row.policy.num_rollouts // batch_size) * row.policy.inner_epochs
        oldest = engine.interval - math.gcd(engine.interval, pool)
    limit = staleness_limit(row.objective) if engine.max_staleness is None else engine.max_staleness
    if oldest <= limit:
        return None
    return (
        f"engine.{name} = {getattr(engine, name)}: the weights that generate text would be up to {oldest} updates old; with "
        f"this objective they may be {limit}; lower engine.{name}, or set engine.max_staleness to {oldest}"
    )
