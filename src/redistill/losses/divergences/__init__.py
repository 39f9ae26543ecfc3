"""How far the student's next-token distribution is from the teacher's: one frozen dataclass a divergence.

A member's fields are its hyper-parameters, and its call obeys `contracts.Divergence`.  To add one, write its class in a file
here, give it `examples()`, and put it into the union at the foot: the configuration and the laws of `redistill.testing` pick it
up from there.

A log-probability of -inf marks a class that a model rules out (vocabulary padding, a mask).  One that both models rule out
contributes 0 everywhere.  One that a single model rules out contributes 0 to the divergences that would be infinite there,
since an infinite loss would end the run over a class that nobody can predict: forward, reverse, symmetric and adaptive KL, and
alpha-beta with an exponent of 0.  To the others it contributes what the formula says, which is finite: Jensen-Shannon, skew KL,
total variation, alpha-beta with both exponents above 0.

Nothing here reduces over rows, learns, or knows where the rows come from.
"""

from redistill.losses.divergences.distances import AlphaBeta, TotalVariation
from redistill.losses.divergences.kl import AdaptiveKL, ForwardKL, ReverseKL, SymmetricKL
from redistill.losses.divergences.mixtures import JensenShannon, SkewForwardKL, SkewReverseKL
from redistill.losses.divergences.softened import Softened, bounded, fraction, log_ratio

Divergence = (
    ForwardKL
    | ReverseKL
    | SymmetricKL
    | JensenShannon
    | TotalVariation
    | SkewForwardKL
    | SkewReverseKL
    | AdaptiveKL
    | AlphaBeta
)

__all__ = [
    "AdaptiveKL",
    "AlphaBeta",
    "Divergence",
    "ForwardKL",
    "JensenShannon",
    "ReverseKL",
    "SkewForwardKL",
    "SkewReverseKL",
    "Softened",
    "SymmetricKL",
    "TotalVariation",
    "bounded",
    "fraction",
    "log_ratio",
]
