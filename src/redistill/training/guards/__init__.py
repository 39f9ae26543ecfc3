"""What watches training: updates that must not be made, text that collapses, scores that no longer rise.

Each is told numbers that are the same on every process, so that all processes decide alike.
"""

from redistill.training.guards.collapse import CollapseMonitor, TextFacts, facts_of, text_metrics
from redistill.training.guards.events import Event, Tell
from redistill.training.guards.readings import read_again
from redistill.training.guards.settings import GuardConfig
from redistill.training.guards.spikes import SpikeDetector
from redistill.training.guards.stopping import EarlyStopping
from redistill.training.guards.updates import Update, UpdateGuard

__all__ = [
    "CollapseMonitor",
    "EarlyStopping",
    "Event",
    "GuardConfig",
    "SpikeDetector",
    "Tell",
    "TextFacts",
    "Update",
    "UpdateGuard",
    "facts_of",
    "read_again",
    "text_metrics",
]
