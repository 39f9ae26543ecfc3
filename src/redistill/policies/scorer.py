"""Statistics of student and teacher on sequences, for policies that judge text before it is learned from."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from redistill.contracts import Batch, Teacher, TokenSequence, items_of
from redistill.data.collate import collate
from redistill.vocab_pass import Head, Statistic, row_statistics

ReadStudent = Callable[[Batch], tuple[torch.Tensor, Head]]


class Scorer:
    """Reads sequences with both models, a few at a time.

    Args:
        read_student: A batch -> the student's hidden states of its rows [N, D], and its head, without gradient.
        teacher: One with `TeacherCapabilities.statistics`.
        pad_id: Fills short rows.
        batch_size: Sequences at a time.
        device: Where the student is.
    """

    def __init__(
        self,
        read_student: ReadStudent,
        teacher: Teacher,
        *,
        pad_id: int,
        batch_size: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.read_student, self.teacher = read_student, teacher
        self.batch_size = batch_size
        self._pad_id, self._device = pad_id, device

    def statistics(
        self,
        sequences: Sequence[TokenSequence],
        ask: Sequence[Statistic],
        uniforms: Sequence[np.ndarray] | None = None,
    ) -> dict[Statistic, list[torch.Tensor]]:
        """Each statistic of each sequence, a tensor of a number for each target.

        Args:
            sequences: Read once by both models.
            ask: Names of statistics; see `vocab_pass.row_statistics`.
            uniforms: For each sequence [targets, NUMBERS_PER_DRAW] numbers in [0, 1), float64, where a statistic samples.
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
