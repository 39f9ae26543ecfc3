"""The distillation methods: each is a policy, an objective and an initial student.

The recipes in recipes/ set the learning rates and schedules for each model family.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from redistill.config.plugins import instance
from redistill.errors import ConfigError
from redistill.losses.dac_kl import DacKLConfig
from redistill.losses.divergences import (
    ByOrigin,
    EntropyAware,
    ForwardKL,
    HybridAcceptance,
    JensenShannon,
    ReverseKL,
    SkewForwardKL,
    SkewReverseKL,
    Taid,
    ToDi,
)
from redistill.policies import (
    Adaptive,
    Buffered,
    Fixed,
    Interleaved,
    Mixed,
    Paired,
    PolicyConfig,
    PrefixWeighted,
    Revised,
    Rollouts,
    StudentGenerated,
    TeacherGenerated,
    TeacherMixed,
)
from redistill.training.objective import Objective, PolicyGradientConfig, PretrainingConfig


@dataclass(frozen=True, kw_only=True)
class Method:
    """A distillation method.

    Args:
        policy: Selects or generates the sequences that the student learns from.
        objective: The terms that are minimised.
        summary: Description in one line, which `redistill methods` prints.
        source: The publication that introduced the method.
        start: The initial student. "base" is the model `student.model` of the recipe. "finetuned" is this model after the
            supervised fine-tuning `student.finetune`; if the recipe does not set `student.finetune`, it is the same as "base".
        optimiser, training, evaluation: The method's default values for the sections `optimiser`, `training` and `evaluation`
            of a recipe. The keys are names of fields.
    """

    policy: PolicyConfig
    objective: Objective
    summary: str
    source: str
    start: Literal["base", "finetuned"] = "base"
    optimiser: Mapping[str, object] = field(default_factory=dict)
    training: Mapping[str, object] = field(default_factory=dict)
    evaluation: Mapping[str, object] = field(default_factory=dict)

    def with_defaults(self, tree: Mapping[str, object]) -> dict[str, object]:
        """Return a copy of a recipe in which missing fields have the method's defaults."""
        sections = {"optimiser": self.optimiser, "training": self.training, "evaluation": self.evaluation}
        given = {name: tree.get(name, {}) for name in sections}
        filled = {name: {**sections[name], **values} for name, values in given.items() if isinstance(values, dict)}
        return {**tree, **{name: values for name, values in filled.items() if values or name in tree}}


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
    "seqkd": Method(
        policy=TeacherGenerated(),
        objective=Objective(sft_on="sampled"),
        summary="cross entropy on answers that the teacher generated",
        source="Kim and Rush 2016 (arXiv 1606.07947)",
    ),
    "imitkd": Method(
        policy=StudentGenerated(),
        objective=Objective(sft_weight=0.0, divergence=ForwardKL(), pretraining=PretrainingConfig()),
        summary="forward KL on the student's own text",
        source="Lin et al. 2020 (arXiv 2009.07253)",
        start="finetuned",
    ),
    "gkd": Method(
        policy=Mixed(source=StudentGenerated(), student_fraction=0.5),
        objective=Objective(sft_weight=0.0, divergence=JensenShannon(teacher_weight=0.1)),
        summary="generalised Jensen-Shannon divergence, half on the student's own text, half on gold answers",
        source="Agarwal et al. 2024 (arXiv 2306.13649)",
        start="finetuned",
    ),
    "opd": Method(
        policy=StudentGenerated(),
        objective=Objective(sft_weight=0.0, divergence=ReverseKL()),
        summary="on-policy distillation: reverse KL per token on the student's own text",
        source="Agarwal et al. 2024 (arXiv 2306.13649) with the reverse KL of Gu et al. 2024 (arXiv 2306.08543)",
        start="finetuned",
    ),
    "eopd": Method(
        policy=StudentGenerated(),
        objective=Objective(sft_weight=0.0, divergence=EntropyAware()),
        summary="opd, with an additional forward KL where the teacher is uncertain",
        source="Entropy-aware on-policy distillation, 2026 (arXiv 2603.07079)",
        start="finetuned",
    ),
    "iwopd": Method(
        policy=PrefixWeighted(source=StudentGenerated(), amplification=0.5),
        objective=Objective(sft_weight=0.0, divergence=ReverseKL()),
        summary="opd with less weight on tokens after a prefix on which the models disagree",
        source="Xie et al. 2026 (arXiv 2606.22600)",
        start="finetuned",
    ),
    "minillm": Method(
        policy=Rollouts(source=TeacherMixed(teacher_share=0.2)),
        objective=Objective(
            sft_weight=0.0,
            divergence=ReverseKL(),
            policy_gradient=PolicyGradientConfig(),
            pretraining=PretrainingConfig(divergence_share=0.5),
        ),
        summary="policy gradient on sequence-level reverse KL, over roll-outs from a mixture of student and teacher",
        source="Gu et al. 2024 (arXiv 2306.08543)",
        start="finetuned",
        optimiser={
            "learning_rate": 5e-6,
            "betas": (0.9, 0.95),
            "weight_decay": 1e-6,
            "schedule": "constant",
            "warmup_updates": 100,
        },
    ),
    "distillm": Method(
        policy=Adaptive(source=StudentGenerated()),
        objective=Objective(sft_weight=0.0, divergence=SkewReverseKL(alpha=0.1), pretraining=PretrainingConfig()),
        summary="skew KL on gold answers and replayed student text; more student text as the validation loss rises",
        source="Ko et al. 2024 (arXiv 2402.03898)",
        start="finetuned",
    ),
    "distillm2": Method(
        policy=Paired(source=StudentGenerated()),
        objective=Objective(
            sft_weight=0.0,
            divergence=ByOrigin(student=SkewReverseKL(alpha=0.1), teacher=SkewForwardKL(alpha=0.1)),
            divergence_mean="sequences",
        ),
        summary="skew forward KL on the teacher's answers, skew reverse KL on the student's answers to the same prompts",
        source="Ko et al. 2025 (arXiv 2503.07067)",
        start="finetuned",
    ),
    "skd": Method(
        policy=Interleaved(teacher_top_k=25),
        objective=Objective(sft_weight=0.0, divergence=ForwardKL()),
        summary="forward KL on the student's text, in which the teacher replaces the tokens that it ranks below its top 25",
        source="Xu et al. 2024 (arXiv 2410.11325)",
        start="finetuned",
    ),
    "todi": Method(
        policy=Fixed(),
        objective=Objective(sft_weight=0.0, divergence=ToDi()),
        summary="forward and reverse KL on the gold answers, with a weight for each class",
        source="Jung et al. 2025 (arXiv 2505.16297)",
        start="finetuned",
    ),
    "taid": Method(
        policy=Fixed(),
        objective=Objective(sft_weight=0.0, divergence=Taid()),
        summary="forward KL to a target that moves from the student to the teacher during training, on the gold answers",
        source="Shing et al. 2025 (arXiv 2501.16937)",
        start="finetuned",
    ),
    "mgsr": Method(
        policy=_MGSR_POLICY,
        objective=Objective(divergence=DacKLConfig(), span_weight=1.0),
        summary="SFT, DAC-KL and span loss, half on revised (SCRG) sequences, half on gold sequences; as in the paper",
        source="Liu et al. 2026 (arXiv 2407.10068)",
        start="finetuned",
    ),
    "mgsr-robust": Method(
        policy=_MGSR_POLICY,
        objective=Objective(divergence=ForwardKL(teacher_temperature=0.8), span_weight=1.0),
        summary="mgsr with forward KL to the teacher at temperature 0.8 in place of DAC-KL, whose network can collapse",
        source="this project; docs/methods/mgsr.md",
        start="finetuned",
    ),
    "draft": Method(
        policy=TeacherGenerated(),
        objective=Objective(sft_weight=0.0, divergence=HybridAcceptance()),
        summary="draft model for speculative decoding: forward KL and total variation on the teacher's text",
        source="LK losses (arXiv 2602.23881)",
        training={"choose_by": "acceptance"},
        evaluation={"teacher_forced": ["acceptance"]},
    ),
}

# Methods as in DistiLLM's public code (docs/methods/compat.md). "On-policy" text is replayed from a buffer. One random choice
# selects the source of a whole batch. SeqKD minimises the KL on gold answers. MiniLLM's whitening includes padding.
_REPLAYED = Buffered(source=StudentGenerated())
_REFERENCE = {
    "seqkd": replace(METHODS["seqkd"], policy=Fixed(), objective=METHODS["kd"].objective),
    "imitkd": replace(METHODS["imitkd"], policy=_REPLAYED),
    "gkd": replace(METHODS["gkd"], policy=Mixed(source=_REPLAYED, student_fraction=0.5, coin="step")),
    "minillm": replace(METHODS["minillm"], policy=Rollouts(source=TeacherMixed(teacher_share=0.2), whiten="padded")),
    "distillm": replace(METHODS["distillm"], policy=Adaptive(source=StudentGenerated(), coin="step")),
    **{name: replace(METHODS[name], policy=replace(_MGSR_POLICY, coin="step")) for name in ("mgsr", "mgsr-robust")},
}


def method(name: str) -> Method:
    """Return the method with this name.

    The name of an external method has the form `module:NAME`. Its module must be imported already.

    Raises:
        ConfigError: there is no method with this name, or its module is not imported.
    """
    if ":" in name:
        try:
            return instance(name, Method)
        except ConfigError as error:
            raise ConfigError(f"method = '{name}': {error}") from error
    if name not in METHODS:
        raise ConfigError(f"method = '{name}': no such method; choose one of {', '.join(METHODS)}")
    return METHODS[name]


def as_in_reference(name: str) -> Method:
    """Return the method with this name, as DistiLLM's public code implements it.

    If that code implements the method as its paper does, the result is the same as that of `method(name)`.

    Raises:
        ConfigError: there is no method with this name, or its module is not imported.
    """
    return _REFERENCE.get(name) or method(name)
