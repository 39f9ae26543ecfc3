"""Forms in which a cached teacher is stored.

There are three forms: hidden states, the most probable classes with the remaining mass, and sampled classes.  Hidden states
give exact distributions over the whole vocabulary.  The other two are compact forms: they need fewer bytes and no head, but
only some divergences can be computed from them.  A row is the teacher's prediction of one target.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar

import numpy as np
import torch

from redistill.contracts import SampledClasses, TeacherCapabilities, TopClasses
from redistill.errors import ConfigError
from redistill.randomness import generator
from redistill.records import Json

Tensors = Mapping[str, torch.Tensor]
"""The stored tensors of some rows, by name."""
CHUNK_BYTES = 64_000_000
"""Maximum size, in bytes, of a float64 tensor [rows, vocabulary] when compact forms are computed."""


@dataclass(frozen=True, kw_only=True)
class Full:
    """The last hidden states, from which the teacher's head computes all logits.

    Example:
        >>> Full().capabilities.full_vocabulary
        True
    """

    kind: ClassVar[str] = "full"
    capabilities: ClassVar[TeacherCapabilities] = TeacherCapabilities(full_vocabulary=True, generates=True, new_text=False)

    def row_bytes(self, state_bytes: int) -> int:
        """Return the size of a stored row in bytes.

        Args:
            state_bytes: Size of a hidden state.
        """
        return state_bytes

    def rows(self, tensors: Tensors, rows: slice) -> dict[str, torch.Tensor]:
        """Return the stored hidden states of a slice of rows.

        Args:
            tensors: The stored tensors by name.
            rows: Slice of the first dimension.
        """
        return {"hidden_NE": tensors["hidden_NE"][rows]}


@dataclass(frozen=True, kw_only=True)
class TopK:
    """The k most probable classes, and the total probability of all other classes.

    A row needs 6 k + 4 bytes.  Log-probabilities are stored in float16, whose relative error is at most 0.05 %.  When a row
    is read, its probabilities, including that of the other classes, are divided by their sum.

    Args:
        k: Number of classes, >= 1.

    Raises:
        ConfigError: `k` is below 1.

    Example:
        >>> TopK(k=20).row_bytes(2304)
        124
    """

    kind: ClassVar[str] = "top_k"

    k: int = 64

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigError(f"k = {self.k}: must be >= 1, such as 64")

    @property
    def capabilities(self) -> TeacherCapabilities:
        """The features of a teacher that is stored in this form."""
        return TeacherCapabilities(full_vocabulary=False, generates=True, new_text=False, top_k=self.k)

    def row_bytes(self, state_bytes: int) -> int:
        """Return the size of a stored row in bytes; it does not depend on `state_bytes`."""
        return self.k * (torch.int32.itemsize + torch.float16.itemsize) + torch.float32.itemsize

    def stored(self, logp_NV: torch.Tensor, generators: Sequence[np.random.Generator]) -> dict[str, torch.Tensor]:
        """Convert teacher distributions of rows to the tensors that are stored.

        Args:
            logp_NV: The teacher's log-probabilities.
            generators: Not used; `Sampled` uses them.
        """
        # A vocabulary of fewer than k classes is padded with classes of probability 0.
        found = logp_NV.topk(min(self.k, logp_NV.shape[1]), dim=-1)
        log_rest_N = logp_NV.scatter(1, found.indices, -torch.inf).logsumexp(dim=-1)
        missing = self.k - found.values.shape[1]
        return {
            "class_NK": torch.nn.functional.pad(found.indices, (0, missing)).int(),
            "logp_NK": torch.nn.functional.pad(found.values, (0, missing), value=-math.inf).half(),
            "log_rest_N": log_rest_N.float(),
        }

    def rows(self, tensors: Tensors, rows: slice) -> dict[str, torch.Tensor]:
        """Return the stored tensors of a slice of rows."""
        return {name: tensors[name][rows] for name in ("class_NK", "logp_NK", "log_rest_N")}

    def classes(self, tensors: Tensors) -> TopClasses:
        """Convert the stored tensors of rows to a `TopClasses` object."""
        logp = torch.cat([tensors["logp_NK"].float(), tensors["log_rest_N"][:, None]], dim=1).log_softmax(dim=-1)
        return TopClasses(tensors["class_NK"].long(), logp[:, :-1], logp[:, -1])


@dataclass(frozen=True, kw_only=True)
class Sampled:
    r"""Classes that were sampled from the teacher, with their weights.

    .. math:: c_1, \dots, c_n \sim r \propto p^t, \qquad w_c = \frac{p_c}{n\, r_c} \cdot |\{i : c_i = c\}|

    p is the teacher's distribution, n is `draws` and t is `power`.  The classes c_i are sampled from the distribution r,
    and w_c is the weight of class c.  The expected value of the sum of w_c f(c) is the sum of p_v f(v), for every function
    f.  So the loss and the gradient of forward KL have no bias.  The weights are not divided by their sum, because this
    would add a bias for a power other than 1.  Source: Anshumann et al. (arXiv 2503.16870).

    A row needs 8 bytes, and 8 more for each different class.

    Args:
        draws: Number n of samples for each row, >= 1.
        power: Exponent t, in (0, 2]; with 1 the classes are sampled from p.
        seed: Seed of the samples. It does not depend on the run's seed, so that runs with different seeds can share a store.

    Raises:
        ConfigError: a value is out of range.

    Example:
        >>> Sampled(draws=50).capabilities.sampled
        True
    """

    kind: ClassVar[str] = "sampled"
    capabilities: ClassVar[TeacherCapabilities] = TeacherCapabilities(
        full_vocabulary=False, generates=True, new_text=False, sampled=True
    )

    draws: int = 50
    power: float = 1.0
    seed: int = 10

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise ConfigError(f"draws = {self.draws}: must be >= 1, such as 50")
        if not 0 < self.power <= 2:
            raise ConfigError(f"power = {self.power}: must lie in (0, 2]; 1 samples from the teacher's distribution")

    def row_bytes(self, state_bytes: int) -> int:
        """Return the largest size of a stored row in bytes.

        A row is largest if its samples are all different.  The result does not depend on `state_bytes`.
        """
        return self.draws * (torch.int32.itemsize + torch.float32.itemsize) + torch.int32.itemsize + torch.float32.itemsize

    def stored(self, logp_NV: torch.Tensor, generators: Sequence[np.random.Generator]) -> dict[str, torch.Tensor]:
        """Sample classes for each row; return the tensors that are stored.

        Args:
            logp_NV: The teacher's log-probabilities.
            generators: For each row, the generator of its random numbers; the rows of one sequence share a generator.
        """
        logp_NV = logp_NV.double()
        log_proposal_NV = torch.log_softmax(self.power * logp_NV, dim=-1)
        cumulative_NV = log_proposal_NV.exp().cumsum(dim=-1)
        uniform_NK = torch.from_numpy(np.stack([random.random(self.draws) for random in generators])).to(logp_NV.device)
        # The factor keeps thresholds below the total despite rounding, so that no class of probability 0 is sampled.
        threshold_NK = (uniform_NK * (1 - 1e-12)) * cumulative_NV[:, -1:]
        drawn_NK = torch.searchsorted(cumulative_NV, threshold_NK, right=True).clamp(max=logp_NV.shape[1] - 1)
        row_NK = torch.arange(len(drawn_NK), device=drawn_NK.device)[:, None]
        found_M, count_M = torch.unique(row_NK * logp_NV.shape[1] + drawn_NK, return_counts=True)
        row_M, class_M = found_M // logp_NV.shape[1], found_M % logp_NV.shape[1]
        ratio_M = (logp_NV[row_M, class_M] - log_proposal_NV[row_M, class_M]).exp()
        return {
            "class_M": class_M.int(),
            "weight_M": (count_M * ratio_M / self.draws).float(),
            "entropy_N": torch.special.entr(logp_NV.exp()).sum(dim=-1).float(),
            "count_N": torch.bincount(row_M, minlength=len(logp_NV)).int(),
        }

    def rows(self, tensors: Tensors, rows: slice) -> dict[str, torch.Tensor]:
        """Return the stored tensors of a slice of rows."""
        count_N = tensors["count_N"]
        start = int(count_N[: rows.start].sum())
        found = slice(start, start + int(count_N[rows].sum()))
        own = {name: tensors[name][found] for name in ("class_M", "weight_M")}
        return own | {name: tensors[name][rows] for name in ("entropy_N", "count_N")}

    def classes(self, tensors: Tensors) -> SampledClasses:
        """Convert the stored tensors of rows to a `SampledClasses` object.

        Rows with fewer classes than others are padded with classes of weight 0.
        """
        counts = tensors["count_N"].tolist()
        padded = {
            name: torch.nn.utils.rnn.pad_sequence(list(tensors[name].split(counts)), batch_first=True)
            for name in ("class_M", "weight_M")
        }
        return SampledClasses(padded["class_M"].long(), padded["weight_M"], tensors["entropy_N"])


CompactForm = TopK | Sampled
Form = Full | CompactForm
_FORMS: dict[str, Callable[..., Form]] = {Full.kind: Full, TopK.kind: TopK, Sampled.kind: Sampled}


def joined(parts: Sequence[Tensors]) -> dict[str, torch.Tensor]:
    """Concatenate tensors that have the same name in all parts; at least one part."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def described(form: Form) -> dict[str, Json]:
    """Return a form as a mapping with its kind and settings.

    `form_from` creates the form again from this mapping.

    Example:
        >>> described(TopK(k=20))
        {'kind': 'top_k', 'k': 20}
    """
    return {"kind": form.kind, **asdict(form)}


def form_from(tree: Mapping[str, Json]) -> Form:
    """Create a form from the result of `described`.

    Raises:
        ConfigError, LookupError, TypeError: the mapping describes no form.
    """
    settings = dict(tree)
    return _FORMS[str(settings.pop("kind"))](**settings)


def label(form: Form) -> str:
    """Return the kind of a form and its settings, as one line for messages.

    Example:
        >>> label(Full()), label(TopK(k=20))
        ('full', 'top_k 20')
    """
    return " ".join(map(str, described(form).values()))


def chunks(num_rows: int, num_classes: int) -> Iterator[slice]:
    """Divide rows into slices that are small enough to be processed at once.

    A float64 tensor [rows of a slice, `num_classes`] has at most `CHUNK_BYTES` bytes, unless one row needs more.
    """
    size = max(1, CHUNK_BYTES // (num_classes * torch.float64.itemsize))
    return (slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size))


def row_generators(seed: int, keys: Sequence[bytes], targets: Sequence[int]) -> list[np.random.Generator]:
    """Return a random number generator for each row.

    The rows of a sequence share one generator.

    Args:
        seed: Seed of the samples.
        keys: Key of each sequence.
        targets: Number of rows of each sequence.
    """
    each = [generator(seed, "sampled targets", key.hex()) for key in keys]
    return [random for random, count in zip(each, targets, strict=True) for _ in range(count)]
