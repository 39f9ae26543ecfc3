"""The comparison of a vLLM server's weights with those of the student.

The server and the student compute the log-probabilities of the next token after probe texts.  A probe text is longer than one
block of the server's prefix cache (128 tokens on a CPU, 16 on a GPU), and the server may use this cache.  Therefore the
comparison detects weights that were not replaced, such as an old head, and stored states of earlier weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from redistill.models.families import eval_mode
from redistill.randomness import generator

NUM_PROBES = 4
PROBE_TOKENS = 160
TAIL_TOKENS = 16
"""The probe texts differ in this number of last tokens."""
TOP_K = 20
"""Number of compared classes of each text; vLLM lists at most 20 without --max-logprobs."""
LEAST_NATS = 1e-3
"""Differences up to this value are rounding errors, even of float32."""
NOISE_FACTOR = 5.0
"""A later difference may exceed the difference after the first transfer by this factor."""


def probe_texts(vocabulary: int, special_ids: Sequence[int], longest: int) -> list[tuple[int, ...]]:
    """Return the token ids of the probe texts: random ordinary tokens.

    Args:
        vocabulary: Number of token ids.
        special_ids: Token ids that are not used, since a server may treat them differently.
        longest: Maximum length of a text.

    Example:
        >>> texts = probe_texts(100, [0], 256)
        >>> len(texts), len(texts[0]), texts[0][:-16] == texts[1][:-16], texts[0] == texts[1]
        (4, 160, True, False)
    """
    excluded = set(special_ids)
    ids = [token for token in range(vocabulary) if token not in excluded] or [0]
    length = max(2, min(PROBE_TOKENS, longest))
    tail = min(TAIL_TOKENS, length - 1)
    start, *tails = (generator(0, "weights-probe", number) for number in range(NUM_PROBES + 1))
    common = [ids[index] for index in start.integers(len(ids), size=length - tail).tolist()]
    return [(*common, *(ids[index] for index in each.integers(len(ids), size=tail).tolist())) for each in tails]


@torch.no_grad()
def student_logprobs(student: nn.Module, texts: Sequence[Sequence[int]], vocabulary: int) -> torch.Tensor:
    """Return the student's log-probabilities of the next token after each text.

    Args:
        student: The language model.
        texts: Token ids of the texts, which have equal lengths.
        vocabulary: Number of classes; further rows of the head are ignored.

    Returns:
        logp_NV on the CPU, in float32.
    """
    device = next(student.parameters()).device
    with eval_mode(student):
        logits_NV = student(input_ids=torch.tensor([list(text) for text in texts], device=device)).logits[:, -1]
    logp_NV: torch.Tensor = logits_NV.float().log_softmax(dim=-1)
    return logp_NV[:, :vocabulary].cpu()


def difference(logp_NV: torch.Tensor, served: Sequence[dict[int, float]]) -> float:
    """Return the mean absolute difference of two sets of log-probabilities.

    The unit is nats.

    Args:
        logp_NV: Log-probabilities of the student.
        served: For each text, log-probabilities of a server by token id.

    Example:
        >>> logp_NV = torch.tensor([[0.5, 0.5]]).log()
        >>> round(difference(logp_NV, [{0: -0.6931, 1: -0.7931}]), 3)
        0.05
    """
    gaps = [abs(float(logp_NV[row, token]) - logp) for row, found in enumerate(served) for token, logp in found.items()]
    return sum(gaps) / len(gaps)


@dataclass
class Threshold:
    """The largest difference between server and student that is a rounding error.

    The first difference is that of rounding, unless it exceeds `tolerance`.  Later ones may be a few times larger, but not
    above `tolerance`.  So a server in float32 is compared more exactly than one in bfloat16.

    Args:
        tolerance: Upper limit, in nats.
        first: The difference after the first transfer; None before.

    Example:
        >>> threshold = Threshold(0.05)
        >>> threshold.limit, threshold.accepts(0.0002), threshold.limit
        (0.05, True, 0.001)
    """

    tolerance: float
    first: float | None = None

    @property
    def limit(self) -> float:
        """The largest accepted difference, in nats."""
        if self.first is None:
            return self.tolerance
        return min(self.tolerance, max(LEAST_NATS, NOISE_FACTOR * self.first))

    def accepts(self, gap: float) -> bool:
        """Return whether a difference is a rounding error.

        The first accepted difference sets the limit for later ones.
        """
        if not gap <= self.limit:
            return False
        if self.first is None:
            self.first = gap
        return True
