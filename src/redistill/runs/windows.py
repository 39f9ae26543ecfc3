"""Windows of DAC-KL: the classes that it keeps for one token.

A run writes a few windows to windows.jsonl when its training ends.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch

from redistill.contracts import Teacher, items_of
from redistill.data.collate import collate
from redistill.losses.dac_kl import DacKL, recovered
from redistill.losses.dac_kl_options import Mode
from redistill.policies.order import gold_sequence
from redistill.runs.build import student_reader
from redistill.runs.opened import OpenRun
from redistill.runs.revisions import verbatim
from redistill.storage import files
from redistill.teachers.local import LocalTeacher
from redistill.vocab_pass.rules import whole

FILE = "windows.jsonl"
"""File in a run folder with windows of the trained student."""
NUM_WINDOWS = 4
"""Number of windows in the file."""
NUM_CLASSES = 50
"""Maximum number of kept classes of a window in the file, and maximum number of its other classes."""


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """A class (token of the vocabulary) with its probabilities.

    Args:
        token_id: The token id.
        text: The text of the token.
        rank: Rank of the class by the teacher's probability; 1 is the most probable class.
        teacher, student: Probabilities of the class.
        is_kept: Whether DAC-KL keeps the class.
    """

    token_id: int
    text: str
    rank: int
    teacher: float
    student: float
    is_kept: bool


@dataclass(frozen=True, kw_only=True)
class Window:
    """The window of DAC-KL at one target of a gold answer.

    More than 12 fields: an instance is one line of windows.jsonl, which has as many.

    Args:
        row: Index of the training example.
        position: Index of the target, from 0.
        context: The text before the target.
        target: The text of the target.
        mode: The score that decides whether a class is kept; "value" is the teacher's probability.
        lower, upper: The interval of scores, l and u of Eq. 6.
        kept_classes: Number of kept classes.
        kept_mass: The teacher's probability of all kept classes.
        recovered: The fraction of the teacher's probability outside its most probable class that is on kept classes; 1 if no
            other class has any probability.
        divergence: The value of DAC-KL at this target, in nats.
        classes: The kept classes and the most probable other ones, in descending order of the teacher's probability.
    """

    row: int
    position: int
    context: str
    target: str
    mode: Mode
    lower: float
    upper: float
    kept_classes: int
    kept_mass: float
    recovered: float
    divergence: float
    classes: Sequence[ClassRow]

    def as_json(self) -> dict[str, object]:
        """Return the window as JSON values."""
        return vars(self) | {"classes": [vars(each) for each in self.classes]}


@torch.no_grad()
def window_at(run: OpenRun, row: int, position: int, top: int) -> Window:
    """Compute the window of DAC-KL at one target of a gold answer.

    All processes of the job must call the function, with the same arguments.

    Args:
        run: A run whose divergence is DAC-KL, with a teacher.
        row: Index of the training example, which has an answer.
        position: Index of the target (a token of the answer), from 0.
        top: Maximum number of kept classes in the result, and maximum number of other classes.
    """
    tokenizer, teacher, module = run.models.tokenizer, cast(Teacher, run.teacher), cast(DacKL, run.student.clip_network)
    sequence = gold_sequence(run.data.train[row])
    batch = collate(items_of([sequence], "distillation"), pad_id=run.models.pad_id, device=run.accelerator.device)
    here = slice(position, position + 1)
    with run.accelerator.autocast(), run.frozen.passes():
        teacher.prepare([sequence])
        logp_NV = whole(teacher.rows(batch)(here))
    with run.placement.unsharded(run.student), run.accelerator.autocast():
        hidden_ND, head = student_reader(run, remembers=False)(batch)
        logq_NV = torch.log_softmax(head.logits(hidden_ND[here]).to(logp_NV.dtype), dim=-1)
        value_N, rows = module(logq_NV, logp_NV)
        kept_V, p_V, q_V = module.kept(logq_NV, logp_NV)[0], logp_NV[0].exp(), logq_NV[0].exp()
    shown = {name: float(each) for name, each in rows.items()}
    ranked = p_V.argsort(descending=True, stable=True)
    ranks = {int(token): rank for rank, token in enumerate(ranked.tolist(), start=1)}
    listed = [*ranked[kept_V[ranked]][:top].tolist(), *ranked[~kept_V[ranked]][:top].tolist()]
    target = [index for index, is_target in enumerate(sequence.supervised) if is_target][position]
    return Window(
        row=row,
        position=position,
        context=verbatim(tokenizer, sequence.token_ids[:target]),
        target=verbatim(tokenizer, sequence.token_ids[target : target + 1]),
        mode=module.config.mode,
        lower=shown["lower"],
        upper=shown["upper"],
        kept_classes=int(shown["kept_classes"]),
        kept_mass=shown["kept_mass"],
        recovered=recovered(shown),
        divergence=float(value_N),
        classes=[
            ClassRow(
                token_id=token,
                text=verbatim(tokenizer, [token]),
                rank=ranks[token],
                teacher=float(p_V[token]),
                student=float(q_V[token]),
                is_kept=bool(kept_V[token]),
            )
            for token in sorted(listed, key=ranks.__getitem__)
        ],
    )


def write_windows(run: OpenRun) -> None:
    """Write windows.jsonl, with windows at a few targets of training examples.

    The windows are computed with the present weights.  The examples are evenly spaced in the data.  The targets are at 1/5,
    2/5, 3/5 and 4/5 of the answers.  Nothing is written if the divergence is not DAC-KL, or if the teacher is not a model that
    this job has loaded.  All processes of the job must call the function.

    Args:
        run: The run, after training.
    """
    if not isinstance(run.student.clip_network, DacKL) or not isinstance(run.teacher, LocalTeacher):
        return
    lines = [window_at(run, *place, NUM_CLASSES).as_json() for place in _places(run)]
    if run.processes.is_main:
        files.rewrite_lines(run.config.folder / FILE, lines)


def _places(run: OpenRun) -> Iterator[tuple[int, int]]:
    """Yield the examples and the targets at which windows are recorded."""
    rows = [row for row, example in enumerate(run.data.train) if any(example.supervised)]
    for number in range(min(NUM_WINDOWS, len(rows))):
        row = rows[number * len(rows) // NUM_WINDOWS] if len(rows) >= NUM_WINDOWS else rows[number]
        yield row, sum(run.data.train[row].supervised) * (number + 1) // (NUM_WINDOWS + 1)
