"""Divergences between the teacher's and the student's next-token distributions.

Each is a frozen dataclass.

The fields of a divergence are its hyper-parameters, and its call implements `contracts.Divergence`.  To add one, write its
class in a file of this package, define `examples()`, and add it to the union below: the configuration and the laws of
`redistill.testing` use the union.

A log-probability of -inf marks a class that a model rules out (vocabulary padding, a mask).  A class that both models rule out
contributes 0 everywhere.  For a class that only one model rules out, there are two cases.  Some formulas would be infinite:
forward, reverse, symmetric and adaptive KL, and alpha-beta with an exponent of 0.  There the class contributes 0, since an
infinite loss would end the run because of a class that cannot be predicted.  The other formulas are finite: Jensen-Shannon,
skew KL, total variation, and alpha-beta with both exponents above 0.  There the class contributes the value of the formula.

The divergences do not reduce over rows, have no trainable parameters, and do not depend on the origin of the rows.
"""

from redistill.losses.divergences.distances import AlphaBeta, TotalVariation
from redistill.losses.divergences.kl import AdaptiveKL, ForwardKL, ReverseKL, SymmetricKL
from redistill.losses.divergences.mixtures import JensenShannon, SkewForwardKL, SkewReverseKL
from redistill.losses.divergences.softened import Softened, bounded, fraction, log_ratio

Table3c = ForwardKL | ReverseKL | SymmetricKL | JensenShannon | TotalVariation | SkewForwardKL | SkewReverseKL  # of MGSR
Divergence = Table3c | AdaptiveKL | AlphaBeta

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
