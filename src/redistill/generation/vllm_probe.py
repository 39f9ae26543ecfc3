"""The comparison of the weights of a vLLM server with the weights of the student.

Server and student compute the log-probabilities of the next token after probe texts.  The comparison detects weights that
were not replaced, such as an old head.  It also detects states in the server's prefix cache that old weights have computed:
a probe text is longer than one block of this cache (128 tokens on a CPU, 16 on a GPU).
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from redistill.models.families import eval_mode
from redistill.models.quantised import is_quantised
from redistill.randomness import generator
from redistill.servers.vllm import Precision

NUM_PROBES = 4
PROBE_TOKENS = 160
TAIL_TOKENS = 16
"""All probe texts are equal except for this number of tokens at their end."""
TOP_K = 20
"""Number of most probable classes that are compared for each text.  vLLM lists at most 20 without --max-logprobs."""
LEAST_NATS = 1e-3
"""Differences up to this value, in nats, are always accepted as rounding errors, even in float32."""
ROUNDING_FACTOR = 3.0
"""Limit of the first difference of a half-precision dtype, as a multiple of the difference that this dtype causes."""
NOISE_FACTOR = 5.0
"""Limit of the difference after a later transfer, as a multiple of the difference after the first transfer."""


def probe_texts(vocabulary: int, special_ids: Sequence[int], longest: int) -> list[tuple[int, ...]]:
    """Return the token ids of the probe texts, which are random.

    Args:
        vocabulary: Number of token ids.
        special_ids: Token ids that are not used, since a server may treat them in a special way.
        longest: Maximum length of a text in tokens.

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
        texts: Token ids of the texts, which must have equal lengths.
        vocabulary: Number V of token ids in the result.  Additional rows of the head are dropped after the softmax.

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

    The unit is nats.  The mean is over all texts, and over the tokens that the server lists for each text.

    Args:
        logp_NV: Log-probabilities of the student, one row for each text.
        served: For each text, the log-probabilities that a server lists, by token id.

    Example:
        >>> logp_NV = torch.tensor([[0.5, 0.5]]).log()
        >>> round(difference(logp_NV, [{0: -0.6931, 1: -0.7931}]), 3)
        0.05
    """
    gaps = [abs(float(logp_NV[row, token]) - logp) for row, found in enumerate(served) for token, logp in found.items()]
    return sum(gaps) / len(gaps)


@torch.no_grad()
def rounding_gap(student: nn.Module, texts: Sequence[Sequence[int]], logp_NV: torch.Tensor, num_classes: int) -> float:
    """Return the difference that the rounding of a half-precision dtype causes.

    The student is compared with a temporary copy of another dtype: bfloat16 for a student in float32, and float32 for a
    student in a half-precision dtype.  The result is the mean absolute difference of log-probabilities, in nats.

    Args:
        student: The language model.
        texts: Token ids of the texts, which must have equal lengths.
        logp_NV: The student's log-probabilities after the texts, from `student_logprobs`.
        num_classes: Number of most probable classes that are compared for each text.
    """
    dtype = torch.bfloat16 if _is_float32(student) else torch.float32
    other_NV = student_logprobs(copy.deepcopy(student).to(dtype=dtype), texts, logp_NV.shape[1])
    class_NK = other_NV.topk(num_classes, dim=-1).indices
    return float((logp_NV.gather(1, class_NK) - other_NV.gather(1, class_NK)).abs().mean())


def first_limit(
    student: nn.Module, texts: Sequence[Sequence[int]], logp_NV: torch.Tensor, num_classes: int, precision: Precision
) -> float:
    """Return the limit of the first difference, in nats.

    If server and student have float32, the result is `LEAST_NATS`.  Otherwise it is `ROUNDING_FACTOR` times the difference that
    a half-precision dtype causes (see `rounding_gap`), but at least `LEAST_NATS`.  For a quantised student the result is
    infinity, since quantised weights have no copy in another dtype.

    Args:
        student, texts, logp_NV, num_classes: See `rounding_gap`.
        precision: Precision of the server; None if it is not known.
    """
    if precision == "float32" and _is_float32(student):
        return LEAST_NATS
    if is_quantised(student):
        return math.inf
    return max(LEAST_NATS, ROUNDING_FACTOR * rounding_gap(student, texts, logp_NV, num_classes))


def _is_float32(student: nn.Module) -> bool:
    return all(parameter.dtype == torch.float32 for parameter in student.parameters())


@dataclass
class Threshold:
    """The largest difference between server and student that is accepted.

    An accepted difference is attributed to rounding.  The limit of the first difference is `start`.  The limit of later
    differences is `NOISE_FACTOR` times the first difference, but at least `LEAST_NATS` and at most `start`.  No limit is above
    `tolerance`.  A server in bfloat16 has a larger first difference than one in float32, and therefore a higher limit.

    Args:
        tolerance: Upper limit of all differences, in nats.
        start: Limit of the first difference, in nats (see `first_limit`).
        first: The difference after the first transfer, in nats; None before this transfer.

    Example:
        >>> threshold = Threshold(0.05, start=0.02)
        >>> threshold.limit, threshold.accepts(0.0002), threshold.limit
        (0.02, True, 0.001)
    """

    tolerance: float
    start: float = math.inf
    first: float | None = None

    @property
    def limit(self) -> float:
        """The largest accepted difference, in nats."""
        later = math.inf if self.first is None else max(LEAST_NATS, NOISE_FACTOR * self.first)
        return min(self.tolerance, self.start, later)

    def accepts(self, gap: float) -> bool:
        """Return whether a difference, in nats, is accepted as a rounding error.

        The first accepted difference determines the limit for later ones.
        """
        if not gap <= self.limit:
            return False
        if self.first is None:
            self.first = gap
        return True
