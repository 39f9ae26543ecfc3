"""The vocabulary pass: LM head and objective in chunks of rows.

No [N, V] tensor of a whole batch exists.

`vocab_pass` computes all terms of the objective - cross entropy, a divergence, the span loss, a policy gradient - and their
gradients in one pass over the rows.  `row_statistics` computes statistics of rows without gradients.  `dense_reference`
computes the same as `vocab_pass` with plain autograd.  The sums over rows are not divided by the number of rows: the
coefficients of the terms, which the caller sets, include this division.
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
