"""Hidden states x LM head in chunks: every [rows, vocabulary] tensor lives and dies here.

`vocab_pass` adds up all terms of the objective - cross entropy, a divergence, spans, a policy gradient - in one visit of the
rows and takes their gradients on the way, so that nothing is computed twice and nothing of size [N, V] exists.
`row_statistics` walks rows without gradients.  `dense_reference` is what `vocab_pass` must equal.  Counts and weights are the
caller's: nothing here divides.
"""

from redistill.vocab_pass.core import Compile, compiles
from redistill.vocab_pass.head import Head
from redistill.vocab_pass.sampling import NUMBERS_PER_DRAW, sample_rows
from redistill.vocab_pass.statistics import Statistic, row_statistics
from redistill.vocab_pass.terms import CrossEntropyTerm, DivergenceTerm, PolicyGradientTerm, SpanTerm, Term
from redistill.vocab_pass.walk import chunk_budget, dense_reference, vocab_pass

__all__ = [
    "NUMBERS_PER_DRAW",
    "Compile",
    "CrossEntropyTerm",
    "DivergenceTerm",
    "Head",
    "PolicyGradientTerm",
    "SpanTerm",
    "Statistic",
    "Term",
    "chunk_budget",
    "compiles",
    "dense_reference",
    "row_statistics",
    "sample_rows",
    "vocab_pass",
]
