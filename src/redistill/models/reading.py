"""The boundary to the libraries that read models: exceptions become one line.

A library may raise anything for a file that somebody else wrote, so no list of exception types is kept.  Errors of redistill
itself are not converted: they are `RedistillError`s already, or were raised by a line of this package.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from redistill.errors import ModelError, RedistillError
from redistill.processes.memory import is_out_of_memory

_PACKAGE = str(Path(__file__).parents[1])
# Mistakes of the line that raises them.  Compiled code, which has no line of its own, raises other types for invalid input.
_MISTAKES = (AssertionError, AttributeError, ImportError, LookupError, NameError, NotImplementedError, TypeError)
_OUT_OF_MEMORY = ("cannot allocate memory", "std::bad_alloc")


@contextlib.contextmanager
def reading(what: str | Callable[[], str], remedy: str, *, failure: str = "cannot be loaded") -> Iterator[None]:
    """Context: calls of a library that reads untrusted input.

    Args:
        what: What is read, such as "models/a: config.json"; the start of the message.  A function is called after a failure.
        remedy: What to do; the end of the message.
        failure: What does not work; the middle of the message.

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
    except Exception as error:
        if is_mistake(error):
            raise
        raise refusal(what if isinstance(what, str) else what(), error, remedy, failure) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of libraries in Rust; it is no Exception
            raise
        raise refusal(what if isinstance(what, str) else what(), error, remedy, failure) from error


def refusal(what: str, error: BaseException, remedy: str, failure: str = "cannot be loaded") -> ModelError:
    """The error that replaces a library's exception."""
    said = reason(error)
    if is_out_of_memory(error) or any(phrase in said.lower() for phrase in _OUT_OF_MEMORY):
        remedy = "use a smaller model, dtype: bfloat16, or a machine with more memory"
        return ModelError(f"{what} needs more memory than is available ({said}); {remedy}")
    return ModelError(f"{what} {failure} ({said}); {remedy}")


def is_mistake(error: BaseException) -> bool:
    """Whether a line of this package raised the exception by a mistake of its own.

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
    """One line about an exception, of at most 300 characters.

    It is the first line of the message, and the ones that this announces.

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
    return (text if explains_itself else f"{type(error).__name__}: {text}")[:300]
