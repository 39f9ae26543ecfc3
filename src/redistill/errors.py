"""Exceptions for errors that users can fix, and for signals that stop the process.

The message of an error is one line. It states where the error is, what was given, what is allowed, and what to do.

Every exception that redistill raises for invalid input or a failed run is a `RedistillError`. The command line prints its
message and exits with its `exit_code`. Internal invariants are checked with `assert`.
"""

import signal


class RedistillError(Exception):
    """An error that the user can fix.

    `str(error)` is one line that includes the remedy.

    `exit_code` is the exit status of the command line.  `is_everywhere` is True if the error was raised in all processes of a
    job (see `signals.fail`).

    Example:
        >>> error = ConfigError("top_p = 2: must lie in (0, 1]; 1 keeps every class")
        >>> isinstance(error, RedistillError), error.exit_code
        (True, 2)
    """

    exit_code = 2
    is_everywhere = False


class ConfigError(RedistillError, ValueError):
    """A setting is invalid.

    The setting is unknown, has the wrong type, is out of range, or conflicts with another setting.

    Example:
        >>> from redistill.losses.divergences import ForwardKL
        >>> ForwardKL(temperature=0.0)
        Traceback (most recent call last):
            ...
        redistill.errors.ConfigError: temperature = 0.0: must be > 0 and finite; 1 does not change the distributions
    """


class DataError(RedistillError, ValueError):
    """A data file is missing, empty, or has too many unusable rows.

    Example:
        >>> from redistill.evaluation.metrics.rouge_l import rouge_l
        >>> rouge_l("an answer", [])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        redistill.errors.DataError: rouge_l: references = []: must not be empty;...
    """


class VocabularyError(RedistillError, ValueError):
    """The token ids of teacher and student do not stand for the same tokens.

    Example:
        >>> from redistill.models.vocabulary import match_vocabularies
        >>> match_vocabularies({"a": 0, "b": 1}, {"a": 0, "c": 1}, 2, 2)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        redistill.errors.VocabularyError: teacher and student vocabularies differ:...
    """


class ModelError(RedistillError, ValueError):
    """A model cannot be found, loaded, or used as the run requires.

    Example:
        >>> from redistill.models.load import ModelConfig, load_model
        >>> load_model(ModelConfig(model="./no/such/folder"))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        redistill.errors.ModelError: ./no/such/folder: no such folder;...
    """


class WeightsError(ModelError):
    """Weights of a model are missing, or their shape differs from the model's config.

    Example:
        >>> issubclass(WeightsError, ModelError), WeightsError.exit_code
        (True, 2)
    """


class NotFiniteError(ModelError):
    """The logits of a model are not finite numbers.

    Example:
        >>> issubclass(NotFiniteError, ModelError), NotFiniteError.exit_code
        (True, 2)
    """


class CheckpointError(RedistillError):
    """A checkpoint or run folder is missing, incomplete, or belongs to another run.

    Example:
        >>> import redistill
        >>> run = redistill.Run(name="not-trained", method="sft", student=redistill.StudentConfig(model="gpt2"))
        >>> redistill.evaluate_run(run)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        redistill.errors.CheckpointError: runs/not-trained: has no trained student;...
    """


class OutputError(RedistillError, OSError):
    """A file cannot be written.

    The process has no permission, the disk is full, or the path is outside of the run folder.

    Example:
        >>> from pathlib import Path
        >>> from redistill.storage import files
        >>> files.inside(Path("runs/first"), "../other")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        redistill.errors.OutputError: runs/first: '../other' leads out of the folder;...
    """


class TrainingError(RedistillError):
    """Training cannot continue.

    For example, too many consecutive updates had a non-finite loss or gradient.

    Example:
        >>> import torch
        >>> from redistill.vocab_pass import NUMBERS_PER_DRAW, check_sampled, sample_rows
        >>> token_N = sample_rows(torch.full((1, 3), float("nan")), torch.zeros(1, NUMBERS_PER_DRAW))
        >>> check_sampled(int(token_N.min()))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        redistill.errors.TrainingError: generation: no token can be sampled, because...
    """

    exit_code = 1


class ServerError(RedistillError):
    """A server rejected a request, or its reply is invalid.

    Example:
        >>> issubclass(ServerError, RedistillError), ServerError.exit_code
        (True, 2)
    """


class OtherModelError(ServerError):
    """A server does not have the model of the run.

    Its model has another name or other weights.

    Example:
        >>> issubclass(OtherModelError, ServerError), OtherModelError.exit_code
        (True, 2)
    """


class ServerUnavailableError(ServerError):
    """A server did not reply in time, or all attempts of a request failed.

    The request may succeed later.

    Example:
        >>> issubclass(ServerUnavailableError, ServerError), ServerUnavailableError.exit_code
        (True, 75)
    """

    exit_code = 75


class FindingsError(RedistillError):
    """`redistill doctor` found at least one failure, and has printed its findings.

    Example:
        >>> FindingsError("doctor: 2 findings; apply the remedies and check again").exit_code
        1
    """

    exit_code = 1


class Interrupted(KeyboardInterrupt):
    """The process received a signal to stop.

    The exception is raised only at points where no update or file is incomplete. It is not a `RedistillError`, since no
    invalid input caused it. Its `exit_code` is 128 + `number`.

    Args:
        number: Number of the signal, such as 15 for SIGTERM.

    Example:
        >>> error = Interrupted(15)
        >>> str(error), error.exit_code
        ('SIGTERM', 143)
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message.

    If the message is empty, the name of the exception's type is returned.

    Args:
        error: Any exception.

    Returns:
        One line without a line break at its end.

    Example:
        >>> first_line(ValueError("no such file\\nhint: check the path")), first_line(KeyError())
        ('no such file', 'KeyError')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip()


def is_failure(error: BaseException) -> bool:
    """Return whether an exception is a failure and not a request to stop.

    KeyboardInterrupt and SystemExit are requests to stop. `PanicException` is a failure, although it is not a subclass of
    Exception. Libraries written in Rust raise it for an internal error.

    Args:
        error: Any exception.

    Example:
        >>> is_failure(ValueError("no such file")), is_failure(KeyboardInterrupt())
        (True, False)
    """
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def one_line(error: BaseException) -> str:
    """Return the type and the message of an exception as one line.

    Args:
        error: Any exception.

    Returns:
        "TYPE: MESSAGE", where one space replaces each sequence of white space.

    Example:
        >>> one_line(ValueError("no such file\\nhint: check the path"))
        'ValueError: no such file hint: check the path'
    """
    return " ".join(f"{type(error).__name__}: {error}".split())


def check_field(settings: object, name: str, is_valid: bool, requirement: str) -> None:
    """Check one field of a group of settings.

    Args:
        settings: The object that has the field.
        name: Name of the field.
        is_valid: Whether the value of the field is allowed.
        requirement: The end of the error message, which states what is allowed and what to do.

    Raises:
        ConfigError: the value is not allowed. The message is "NAME = VALUE: REQUIREMENT".

    Example:
        >>> from types import SimpleNamespace
        >>> check_field(SimpleNamespace(rounds=0), "rounds", False, "must be >= 1; 1 is usual")
        Traceback (most recent call last):
            ...
        redistill.errors.ConfigError: rounds = 0: must be >= 1; 1 is usual
    """
    if not is_valid:
        raise ConfigError(f"{name} = {getattr(settings, name)!r}: {requirement}")
