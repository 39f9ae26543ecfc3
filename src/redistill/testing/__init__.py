"""The laws that parts must obey, for the tests of a part of one's own.  No pytest is needed, and nothing is downloaded.

from redistill.testing import check_divergence

def test_the_laws():
    check_divergence(MyDivergence())
"""

from redistill.testing.divergences import DIVERGENCE_LAWS, check_divergence

__all__ = ["DIVERGENCE_LAWS", "check_divergence"]
