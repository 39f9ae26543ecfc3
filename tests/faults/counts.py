"""How often a fault is tried: a quick subset always, all of it by `make faults`."""

import os

WHOLE = os.environ.get("REDISTILL_FAULTS") == "whole"


def trials(quick: int, whole: int) -> int:
    """The number of trials of this call of pytest."""
    return whole if WHOLE else quick
