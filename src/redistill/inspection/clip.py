"""`redistill inspect clip`: the classes that DAC-KL keeps for one token."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from redistill.contracts import items_of
from redistill.data.collate import collate
from redistill.errors import ConfigError
from redistill.inspection.subject import Opened, Subject, check_row, opened
from redistill.losses.dac_kl import DacKL, DacKLConfig
from redistill.policies.order import gold_sequence
from redistill.runs.revisions import verbatim
from redistill.vocab_pass.rules import whole


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """A class (token of the vocabulary) with its probabilities.

    Args:
        token_id: The token id.
        text: The text of the token.
        teacher, student: Probabilities of the class.
        is_kept: Whether DAC-KL keeps the class.
    """

    token_id: int
    text: str
    teacher: float
    student: float
    is_kept: bool


@dataclass(frozen=True, kw_only=True)
class Clip:
    """The interval of DAC-KL at one target of a gold answer.

    Args:
        student: Where the student's weights come from, such as "checkpoint step-40".
        row: Index of the training example.
        position: Index of the target, from 0.
        context: The text before the target.
        target: The text of the target.
        lower, upper: The interval of scores, l and u of Eq. 6.
        kept_classes: Number of kept classes.
        kept_mass: The teacher's probability of all kept classes.
        recovered: Teacher's probability of the kept classes, divided by that of all classes; the teacher's most probable
            class is left out of both.  1 if the divisor is 0.
        divergence: The value of DAC-KL at this target, in nats.
        classes: The kept classes and the most probable other ones, in descending order of the teacher's probability.
    """

    student: str
    row: int
    position: int
    context: str
    target: str
    lower: float
    upper: float
    kept_classes: int
    kept_mass: float
    recovered: float
    divergence: float
    classes: Sequence[ClassRow]

    def as_json(self) -> dict[str, object]:
        """Return the interval as JSON values."""
        return vars(self) | {"classes": [vars(each) for each in self.classes]}


def inspect_clip(subject: Subject, row: int, position: int, *, top: int, step: int | None = None) -> Clip:
    """Return the interval of DAC-KL at one target of a gold answer.

    Args:
        subject: The run or recipe; its divergence is DAC-KL.
        row: Index of the training example, from 0.
        position: Index of the target (a token of the answer), from 0.
        top: Maximum number of kept classes to return, and maximum number of other classes.
        step: Number of updates of the checkpoint to use; None for the newest one.

    Raises:
        ConfigError: the divergence is not DAC-KL, or there is no such example or target.
        CheckpointError: the checkpoint does not exist, or the run has no checkpoint with the network of DAC-KL.
    """
    divergence = subject.config.resolved_method.objective.divergence
    if not isinstance(divergence, DacKLConfig):
        raise ConfigError(f"{subject.name}: objective.divergence is not dac_kl, so there is no interval; use a run of mgsr")
    data = subject.data(subject.tokenizer())
    check_row(subject, row, len(data[1].train))
    example = data[1].train[row]
    if position >= sum(example.supervised):
        raise ConfigError(
            f"{subject.name}: --position {position}: the answer of row {row} has {sum(example.supervised)} tokens; choose a "
            "smaller position"
        )
    with opened(subject, data, step) as found:
        if divergence.has_network and found.student == "trained student":
            raise ConfigError(
                f"{subject.name}: has no checkpoint, and only checkpoints contain DAC-KL's network; repeat the run, or give "
                "its recipe in place of the run folder"
            )
        return _clip(found, row, position, top)


@torch.no_grad()
def _clip(found: Opened, row: int, position: int, top: int) -> Clip:
    run, tokenizer = found.run, found.run.models.tokenizer
    sequence = gold_sequence(run.data.train[row])
    batch = collate(items_of([sequence], "distillation"), pad_id=run.models.pad_id, device=run.accelerator.device)
    here, teacher = slice(position, position + 1), run.teacher
    assert teacher is not None, "a recipe with dac_kl has a teacher"
    with run.accelerator.autocast():
        hidden_ND, head = run.student.rows(batch)
        teacher.prepare([sequence])
        logp_NV = whole(teacher.rows(batch)(here))
        logq_NV = torch.log_softmax(head.logits(hidden_ND[here]).to(logp_NV.dtype), dim=-1)
    module = run.student.clip_network
    assert isinstance(module, DacKL), "checked by the caller"
    value_N, rows = module(logq_NV, logp_NV)
    shown = {name: float(each) for name, each in rows.items()}
    outside = 1 - shown["top_mass"]
    kept_V, p_V, q_V = module.kept(logq_NV, logp_NV)[0], logp_NV[0].exp(), logq_NV[0].exp()
    ranked = p_V.argsort(descending=True, stable=True)
    listed = [*ranked[kept_V[ranked]][:top].tolist(), *ranked[~kept_V[ranked]][:top].tolist()]
    target = [index for index, is_target in enumerate(sequence.supervised) if is_target][position]
    return Clip(
        student=found.student,
        row=row,
        position=position,
        context=verbatim(tokenizer, sequence.token_ids[:target]),
        target=verbatim(tokenizer, sequence.token_ids[target : target + 1]),
        lower=shown["lower"],
        upper=shown["upper"],
        kept_classes=int(shown["kept_classes"]),
        kept_mass=shown["kept_mass"],
        recovered=(shown["kept_mass"] - shown["top_mass"]) / outside if outside > 0 else 1.0,
        divergence=float(value_N),
        classes=[
            ClassRow(
                token_id=token,
                text=verbatim(tokenizer, [token]),
                teacher=float(p_V[token]),
                student=float(q_V[token]),
                is_kept=bool(kept_V[token]),
            )
            for token in sorted(listed, key=lambda token: (-float(p_V[token]), token))
        ],
    )
