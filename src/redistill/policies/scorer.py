"""Divergences and log-probabilities of tokens, for policies that score text."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from redistill.contracts import Batch, Teacher, TokenSequence, items_of
from redistill.data.collate import collate
from redistill.vocab_pass import Head, Statistic, row_statistics

ReadStudent = Callable[[Batch], tuple[torch.Tensor, Head]]


class Scorer:
    """Divergences and log-probabilities of the tokens of sequences.

    Student and teacher run on batches of sequences.  A target is a token that the student is trained to predict.

    Args:
        read_student: Function that receives a batch with N targets.  It returns the student's hidden states [N, D] that predict
            the targets, and the student's head, without gradient.
        teacher: A teacher whose `TeacherCapabilities.statistics` is True.
        pad_id: Token id that pads short sequences.
        batch_size: Sequences per forward pass, >= 1.
        device: The student's device.

    Example:
        >>> from redistill.testing.fixture import make_fixture  # two random models of a few thousand parameters
        >>> tools = make_fixture().tools
        >>> sequence = tools.gold.items(0)[0].sequence
        >>> (kl_N,) = tools.scorer.statistics([sequence], ["reverse_kl"])["reverse_kl"]
        >>> kl_N.shape == (sequence.num_targets,), bool((kl_N >= 0).all())
        (True, True)
    """

    def __init__(
        self, read_student: ReadStudent, teacher: Teacher, *, pad_id: int, batch_size: int, device: torch.device | str = "cpu"
    ) -> None:
        self.read_student, self.teacher, self.batch_size = read_student, teacher, batch_size
        self._pad_id, self._device = pad_id, device

    def statistics(
        self, sequences: Sequence[TokenSequence], ask: Sequence[Statistic], uniforms: Sequence[np.ndarray] | None = None
    ) -> dict[Statistic, list[torch.Tensor]]:
        """Return statistics of each target, such as the divergence of the two models.

        A target is a token that the student is trained to predict.  Each model runs once on each sequence.

        Args:
            sequences: Any number of sequences.
            ask: Names of the statistics; `vocab_pass.row_statistics` describes them.
            uniforms: For each sequence, an array [targets, `NUMBERS_PER_DRAW`] of uniform float64 numbers in [0, 1). None
                if no statistic in `ask` samples tokens.

        Returns:
            For each name in `ask`, a list that contains a tensor [targets] for each sequence.
        """
        found: dict[Statistic, list[torch.Tensor]] = {name: [] for name in ask}
        for start in range(0, len(sequences), self.batch_size):
            part = sequences[start : start + self.batch_size]
            self.teacher.prepare(part)
            batch = collate(items_of(part, "distillation"), pad_id=self._pad_id, device=self._device)
            hidden_ND, head = self.read_student(batch)
            drawn = None
            if uniforms is not None:
                drawn = torch.from_numpy(np.concatenate(uniforms[start : start + self.batch_size])).to(hidden_ND.device)
            rows = row_statistics(hidden_ND, head, self.teacher.rows(batch), ask, uniforms_NK=drawn, token_N=batch.target_N)
            lengths = [sequence.num_targets for sequence in part]
            for name in ask:
                found[name] += rows[name].split(lengths)
        return found
