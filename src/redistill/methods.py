"""The methods as data: reading this file is reading the paper's tables.

A row says which sequences are learnt from, which terms are minimised on them, and where the student starts.  The learning rates
and schedules of each model family stand in recipes/.
"""

from dataclasses import dataclass

from redistill.clipping import DacKLConfig
from redistill.divergences import ForwardKL
from redistill.errors import ConfigError
from redistill.objectives import Objective
from redistill.policies import Fixed, Mixed, PolicyConfig, Revised, StudentGenerated


@dataclass(frozen=True, kw_only=True)
class Method:
    """One row of Table 1.

    Args:
        policy: Which sequences.
        objective: Which terms.
        summary: One line for `redistill methods`.
        source: Where it was published.
    """

    policy: PolicyConfig
    objective: Objective
    summary: str
    source: str


_MGSR_POLICY = Mixed(source=Revised(source=StudentGenerated()), student_fraction=0.5)

METHODS: dict[str, Method] = {
    "sft": Method(
        policy=Fixed(),
        objective=Objective(),
        summary="cross entropy on the gold answers; no teacher",
        source="the paper's Eq. 2",
    ),
    "kd": Method(
        policy=Fixed(),
        objective=Objective(sft_weight=0.0, divergence=ForwardKL()),
        summary="forward KL to the teacher on the gold answers",
        source="Hinton et al. 2015 (arXiv 1503.02531)",
    ),
    "mgsr": Method(
        policy=_MGSR_POLICY,
        objective=Objective(divergence=DacKLConfig(), span_weight=1.0),
        summary="SFT + DAC-KL + span loss on half revised (SCRG), half gold sequences; the paper read literally",
        source="Liu et al. 2026 (arXiv 2407.10068)",
    ),
    "mgsr-robust": Method(
        policy=_MGSR_POLICY,
        objective=Objective(divergence=DacKLConfig(mass_floor=0.9), span_weight=1.0),
        summary="mgsr with a floor under the mass that DAC-KL keeps, so that its network cannot collapse",
        source="this project; docs/methods/mgsr.md",
    ),
}


def method(name: str) -> Method:
    """The row of that name.

    Raises:
        ConfigError: no such method.
    """
    if name not in METHODS:
        raise ConfigError(f"method = '{name}': no such method; choose one of {', '.join(METHODS)}")
    return METHODS[name]
