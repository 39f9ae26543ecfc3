"""Conversion of the exceptions of libraries that read models to one-line errors.

A library may raise an exception of any type for an invalid file. Therefore exceptions of all types are converted. Two kinds
are not converted: a `RedistillError`, and an exception caused by a programming error in this package.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from redistill.errors import ModelError, RedistillError, is_failure
from redistill.processes.memory import is_out_of_memory
from redistill.records import Json
from redistill.storage.json_text import parse_json
from redistill.storage.redaction import plain_line

_PACKAGE = str(Path(__file__).parents[1])
# Types that show a programming error if a line of this package raises them.
_MISTAKES = (AssertionError, AttributeError, ImportError, LookupError, NameError, NotImplementedError, TypeError)
_OUT_OF_MEMORY = ("cannot allocate memory", "std::bad_alloc")


@contextlib.contextmanager
def reading(what: str | Callable[[], str], remedy: str, *, failure: str = "cannot be loaded") -> Iterator[None]:
    """Context that converts the exceptions of a library to a one-line ModelError.

    Args:
        what: Name of the input, such as "models/a: config.json"; the error message begins with it. `what` may also be a
            function that returns the name; the function is called only after a failure.
        remedy: Action that fixes the failure; the message ends with it.
        failure: Verb phrase that follows `what` in the message.

    Raises:
        ModelError: the library raised an exception.

    Example:
        >>> with reading("m: config.json", "download it again"):
        ...     raise ValueError("it is cut")
        Traceback (most recent call last):
        redistill.errors.ModelError: m: config.json cannot be loaded (it is cut); download it again
    """
    try:
        yield
    except RedistillError:
        raise
    except BaseException as error:
        if not is_failure(error) or is_mistake(error):
            raise
        raise refusal(what if isinstance(what, str) else what(), error, remedy, failure) from error


def json_object(what: str, path: Path, remedy: str) -> dict[str, Json]:
    """Read a file that contains one JSON object.

    Args:
        what: Names of the model and the file; the error message begins with them.
        path: The file.
        remedy: Action that fixes the failure, with which the message ends.

    Raises:
        ModelError: the file cannot be read, is not JSON, or contains no JSON object.
    """
    with reading(what, remedy, failure="is not JSON"):
        fields: object = parse_json(path.read_bytes(), any_number=True, unique_keys=False)  # as transformers reads it
    if not isinstance(fields, dict):
        raise ModelError(f"{what} is not a JSON object; {remedy}")
    return fields


def refusal(what: str, error: BaseException, remedy: str, failure: str = "cannot be loaded") -> ModelError:
    """Return the ModelError that replaces `error`, an exception of a library.

    The message consists of `what`, `failure`, the message of `error`, and `remedy`; `reading` describes these arguments. If
    memory was exhausted, the message says so and has another remedy.
    """
    said = reason(error)
    if is_out_of_memory(error) or any(phrase in said.lower() for phrase in _OUT_OF_MEMORY):
        remedy = "use a smaller model, dtype: bfloat16, or a machine with more memory"
        return ModelError(f"{what} needs more memory than is available ({said}); {remedy}")
    return ModelError(f"{what} {failure} ({said}); {remedy}")


def is_mistake(error: BaseException) -> bool:
    """Return whether an exception was caused by a programming error in this package.

    Example:
        >>> is_mistake(ValueError("not raised"))
        False
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    own = trace is not None and trace.tb_frame.f_code.co_filename.startswith(_PACKAGE)
    return own and isinstance(error, _MISTAKES)


def reason(error: BaseException) -> str:
    """Return the message of an exception as one line of at most 300 characters.

    The result is the first line of the message. If this line ends with a colon, the next line is appended, and so on. If
    the message has only one word, the type of the exception precedes it, except for an OSError, RuntimeError or ValueError.

    Example:
        >>> reason(ValueError("invalid field 'x':\\n  TypeError: not an int\\nsee the documentation"))
        "invalid field 'x': TypeError: not an int"
        >>> reason(KeyError("nope"))
        "KeyError: 'nope'"
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    text = lines[0]
    for line in lines[1:]:
        if not text.endswith(":"):
            break
        text = f"{text} {line}"
    explains_itself = isinstance(error, OSError | RuntimeError | ValueError) or text == type(error).__name__ or " " in text
    return plain_line(text if explains_itself else f"{type(error).__name__}: {text}")[:300]
