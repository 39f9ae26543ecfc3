"""Policies, which choose the sequences that the student learns from.

docs/adding.md describes how to add a policy.
"""

from redistill.policies.adaptive import Adaptive
from redistill.policies.buffered import Buffered, has_buffer, num_buffered
from redistill.policies.fixed import Fixed
from redistill.policies.generated import Interleaved, StudentGenerated, TeacherMixed
from redistill.policies.legacy import legacy_sequence
from redistill.policies.mixed import Mixed
from redistill.policies.order import GoldBatches, GoldItem, Shuffled, gold_sequence
from redistill.policies.paired import Paired
from redistill.policies.policy import Policy
from redistill.policies.prefix_weighted import PrefixWeighted
from redistill.policies.revised import Revised
from redistill.policies.rollouts import Rollouts
from redistill.policies.scorer import Scorer
from redistill.policies.source import PolicyTools, Revision
from redistill.policies.teacher import TeacherGenerated

Inner = Fixed | TeacherGenerated | StudentGenerated | TeacherMixed | Interleaved  # policies without an inner policy
PolicyConfig = Inner | Mixed | Buffered | Adaptive | Revised | Rollouts | PrefixWeighted | Paired

__all__ = [
    "Adaptive",
    "Buffered",
    "Fixed",
    "GoldBatches",
    "GoldItem",
    "Interleaved",
    "Mixed",
    "Paired",
    "Policy",
    "PolicyConfig",
    "PolicyTools",
    "PrefixWeighted",
    "Revised",
    "Revision",
    "Rollouts",
    "Scorer",
    "Shuffled",
    "StudentGenerated",
    "TeacherGenerated",
    "TeacherMixed",
    "gold_sequence",
    "has_buffer",
    "legacy_sequence",
    "num_buffered",
]
