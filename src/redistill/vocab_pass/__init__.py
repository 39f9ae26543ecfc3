"""The vocabulary pass: LM head and loss terms, computed in chunks of rows.

A row is the prediction of one token.  A batch has N rows, and the vocabulary has V classes.  Because rows are processed in
chunks, no [N, V] tensor of a whole batch is allocated.

The terms of the objective are cross entropy, a divergence, the span loss and a policy gradient.  `vocab_pass` computes all
terms and their gradients in one pass over the rows.  The terms are sums over rows.  For a mean, the caller divides the
coefficient of a term by the number of rows.

`with_phrases` prepares the likelihood form of the span loss for this pass, because the loss of a phrase depends on rows in
several chunks.  `dense_reference` returns the results of `vocab_pass`, computed with plain autograd; tests compare both.
`row_statistics` returns a value for each row, such as the KL divergence, without gradients.
"""

from redistill.vocab_pass.core import Compile, compiles
from redistill.vocab_pass.cutting import chunk_budget
from redistill.vocab_pass.head import Head
from redistill.vocab_pass.phrases import with_phrases
from redistill.vocab_pass.sampling import NUCLEUS, NUMBERS_PER_DRAW, check_sampled, nucleus, sample_rows
from redistill.vocab_pass.statistics import Statistic, row_statistics
from redistill.vocab_pass.terms import CrossEntropyTerm, DivergenceTerm, PhraseTerm, PolicyGradientTerm, SpanTerm, Term
from redistill.vocab_pass.walk import dense_reference, vocab_pass

__all__ = [
    "NUCLEUS",
    "NUMBERS_PER_DRAW",
    "Compile",
    "CrossEntropyTerm",
    "DivergenceTerm",
    "Head",
    "PhraseTerm",
    "PolicyGradientTerm",
    "SpanTerm",
    "Statistic",
    "Term",
    "check_sampled",
    "chunk_budget",
    "compiles",
    "dense_reference",
    "nucleus",
    "row_statistics",
    "sample_rows",
    "vocab_pass",
    "with_phrases",
]
