"""Which sequences the student learns from.  Adding one: docs/adding.md."""

from redistill.policies.fixed import Fixed
from redistill.policies.generated import StudentGenerated
from redistill.policies.mixed import Mixed
from redistill.policies.revised import Revised
from redistill.policies.sources import GoldBatches, GoldItem, Policy, PolicyTools, Revision, gold_sequence

PolicyConfig = Fixed | StudentGenerated | Mixed | Revised

__all__ = [
    "Fixed",
    "GoldBatches",
    "GoldItem",
    "Mixed",
    "Policy",
    "PolicyConfig",
    "PolicyTools",
    "Revised",
    "Revision",
    "StudentGenerated",
    "gold_sequence",
]
