"""Lengths of training: a number of updates, or of epochs.

This module imports no torch, since reports use it.
"""

import math
import re

from redistill.errors import ConfigError

_EPOCHS = re.compile(r"(\d+(?:\.\d+)?) epochs?")


def check_length(name: str, length: int | str, lowest: int) -> None:
    """Check that the setting `name` is a valid number of updates or of epochs.

    `length` is the value of the setting: an integer >= `lowest`, or a text such as "20 epochs" with a number > 0.

    Raises:
        ConfigError: the length is neither a valid number of updates nor a valid number of epochs.
    """
    if isinstance(length, int):
        if length < lowest:
            raise ConfigError(f"{name} = {length}: must be >= {lowest}")
    elif not (match := _EPOCHS.fullmatch(length)) or not 0 < float(match[1]) < math.inf:
        raise ConfigError(f"{name} = {length!r}: must be a whole number of updates, or epochs such as '20 epochs'")


def longer(length: object, other: object) -> bool | None:
    """Return whether a length of training is larger than another.

    Each length is a value of `training.updates`.  The result is None if the two cannot be compared: one of them is a number of
    updates and the other a number of epochs, or one is not a valid length.

    Example:
        >>> longer(200, 100), longer("3 epochs", "5 epochs"), longer(200, "5 epochs")
        (True, False, None)
    """
    if isinstance(length, int) and isinstance(other, int):
        return length > other
    matches = [_EPOCHS.fullmatch(each) if isinstance(each, str) else None for each in (length, other)]
    epochs = [float(match[1]) for match in matches if match]
    return epochs[0] > epochs[1] if len(epochs) == 2 else None


def in_updates(length: int | str, num_examples: int, batch_size: int) -> int:
    """Convert the value of a setting, in updates or epochs, to a number of updates.

    A value in epochs gives at least 1 update.

    Example:
        >>> in_updates(50, 1000, 8), in_updates("2 epochs", 1000, 8)
        (50, 250)
    """
    if isinstance(length, int):
        return length
    match = _EPOCHS.fullmatch(length)
    assert match is not None, length
    return max(1, int(float(match[1]) * num_examples / batch_size))
