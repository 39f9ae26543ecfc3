"""The errors that a user can meet: one line each - where, what was given, what is allowed, what to do.

Every error that redistill raises on purpose is a `RedistillError`; the command line prints its one line and exits with
`exit_code`.  Broken invariants of our own are `assert`s, never these.
"""

import signal


class RedistillError(Exception):
    """Something that the user can mend; `str(error)` is one line that says how."""

    exit_code = 2


class ConfigError(RedistillError, ValueError):
    """A setting that is unknown, of the wrong type, out of range, or at odds with another."""


class DataError(RedistillError, ValueError):
    """A data file that is missing, empty, or has too many rows that cannot be used."""


class VocabularyError(RedistillError, ValueError):
    """A teacher and a student whose token ids do not mean the same tokens."""


class ModelError(RedistillError, ValueError):
    """A model that cannot be found, loaded, or used the way the run asks."""


class CheckpointError(RedistillError):
    """A checkpoint or run folder that is missing, incomplete, or does not belong to this run."""


class OutputError(RedistillError, OSError):
    """A place that cannot be written: no permission, no space, or it leads out of the run folder."""


class TrainingError(RedistillError):
    """Training that cannot go on, such as too many updates in a row that are not finite."""

    exit_code = 1


class Interrupted(KeyboardInterrupt):
    """A signal has asked this process to stop; raised where nothing is half-done, and no mistake of anybody's.

    Args:
        number: Of the signal.

    Example:
        >>> error = Interrupted(15)
        >>> str(error), error.exit_code
        ('SIGTERM', 143)
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number
