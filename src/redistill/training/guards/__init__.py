"""Guards of training, such as the one against non-finite updates.

Others are against loss spikes, collapse of generated text, and training past the best score.  Every process passes the same
numbers to its guards, so that all processes reach the same decision.
"""

from redistill.training.guards.collapse import CollapseMonitor
from redistill.training.guards.events import Event, ReportEvent
from redistill.training.guards.settings import GuardConfig
from redistill.training.guards.stopping import EarlyStopping
from redistill.training.guards.updates import Update, UpdateGuard

__all__ = ["CollapseMonitor", "EarlyStopping", "Event", "GuardConfig", "ReportEvent", "Update", "UpdateGuard"]
