"""Checks of the properties (laws) that every divergence and policy must have.

A check raises an AssertionError if a law is violated.  This package does not require pytest, and downloads nothing.  A test of
your own divergence `MyDivergence` and policy `MyPolicy`:

    from redistill.testing import check_divergence, check_policy

    def test_the_laws():
        check_divergence(MyDivergence())
        check_policy(MyPolicy())
"""

from redistill.testing.divergences import DIVERGENCE_LAWS, check_divergence
from redistill.testing.policies import POLICY_LAWS, check_policy

__all__ = ["DIVERGENCE_LAWS", "POLICY_LAWS", "check_divergence", "check_policy"]
