"""Guards: checks during training that skip an update, warn, or end the run.

Guards detect non-finite updates, loss spikes, a collapse of the generated text, and validation scores that no longer
improve. Every process passes the same numbers to its guards, so that all processes make the same decisions.
"""

from redistill.training.guards.collapse import CollapseMonitor
from redistill.training.guards.events import Event, ReportEvent
from redistill.training.guards.settings import GuardConfig
from redistill.training.guards.stopping import EarlyStopping
from redistill.training.guards.updates import Update, UpdateGuard

__all__ = ["CollapseMonitor", "EarlyStopping", "Event", "GuardConfig", "ReportEvent", "Update", "UpdateGuard"]
