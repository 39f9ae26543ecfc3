"""Divergences between the teacher's and the student's next-token distributions.

Each divergence is a frozen dataclass.  Its fields are hyper-parameters, and a call returns the divergence of each row
(`contracts.Divergence`).  To add a divergence, write its class in a file of this package, define `examples()`, and add the
class to the union `Divergence` in `__init__.py`.  Recipes accept the classes of this union, and tests check that each class has
the properties that every divergence must have.

A log-probability of -inf marks a class that a model rules out (vocabulary padding, a mask):

- A class that both models rule out contributes 0 to every divergence.
- Forward KL, reverse KL, their combinations, and alpha-beta with an exponent of 0 can be infinite if only one model rules out
  a class.  In these divergences, the class contributes 0 instead.  An infinite loss would end the run because of a single
  class that one model cannot predict.
- Jensen-Shannon, skew KL, total variation, and alpha-beta with both exponents above 0 are always finite.  In these
  divergences, the class contributes the value of the formula.

The divergences do not reduce over rows, and have no trainable parameters.  `ByOrigin` applies a different divergence to text of
each origin (data set, student or teacher).  The other divergences do not depend on the origin.
"""

from redistill.losses.divergences.acceptance import HybridAcceptance, NegativeLogAcceptance
from redistill.losses.divergences.by_class import EntropyAware, ToDi
from redistill.losses.divergences.by_origin import ByOrigin
from redistill.losses.divergences.distances import AlphaBeta, TotalVariation
from redistill.losses.divergences.kl import AdaptiveKL, ForwardKL, ReverseKL, SymmetricKL
from redistill.losses.divergences.mixtures import JensenShannon, SkewForwardKL, SkewReverseKL
from redistill.losses.divergences.softened import Softened, bounded, fraction, log_ratio
from redistill.losses.divergences.taid import Pace, Taid

Table3c = ForwardKL | ReverseKL | SymmetricKL | JensenShannon | TotalVariation | SkewForwardKL | SkewReverseKL  # in MGSR
Divergence = Table3c | AdaptiveKL | AlphaBeta | ToDi | EntropyAware | NegativeLogAcceptance | HybridAcceptance | Taid

__all__ = [
    "AdaptiveKL",
    "AlphaBeta",
    "ByOrigin",
    "Divergence",
    "EntropyAware",
    "ForwardKL",
    "HybridAcceptance",
    "JensenShannon",
    "NegativeLogAcceptance",
    "Pace",
    "ReverseKL",
    "SkewForwardKL",
    "SkewReverseKL",
    "Softened",
    "SymmetricKL",
    "Taid",
    "ToDi",
    "TotalVariation",
    "bounded",
    "fraction",
    "log_ratio",
]
