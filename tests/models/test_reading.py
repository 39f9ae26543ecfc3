"""The boundary to libraries: whatever they raise is one typed line, and mistakes of this package are not hidden."""

import json

import pytest

from redistill.errors import ConfigError, ModelError
from redistill.models.reading import is_mistake, reading, reason
from redistill.models.values import check_tensor


class Surprise(Exception):
    """What nobody expects of a library."""


@pytest.mark.parametrize("error", [Surprise("a\nb"), KeyError("k"), ValueError(), MemoryError(), RecursionError("deep")])
def test_whatever_a_library_raises_is_one_line(error):
    with pytest.raises(ModelError) as caught, reading("m: config.json", "fix it"):
        raise error
    assert str(caught.value).startswith("m: config.json ") and "\n" not in str(caught.value)
    assert caught.value.__cause__ is error


def test_a_panic_of_a_library_in_rust_is_converted():
    panic = type("PanicException", (BaseException,), {})
    with pytest.raises(ModelError, match="it is out of bounds"), reading("m", "fix it"):
        raise panic("it is out of bounds")


def test_typed_errors_and_interrupts_pass():
    for error in (ConfigError("c"), KeyboardInterrupt(), SystemExit(3)):
        with pytest.raises(type(error)) as caught, reading("m", "fix it"):
            raise error
        assert caught.value is error


def test_a_mistake_in_a_line_of_this_package_is_not_hidden():
    with pytest.raises(AttributeError), reading("m", "fix it"):
        check_tensor("m", "key", None)
    with pytest.raises(ModelError), reading("m", "fix it"):
        json.loads(5)  # the same type, raised by a library


def test_only_mistakes_of_this_package_are_mistakes():
    try:
        check_tensor("m", "key", None)
    except AttributeError as error:
        assert is_mistake(error)
    assert not is_mistake(AttributeError("raised nowhere"))


def test_a_reason_is_short_and_one_line():
    assert len(reason(ValueError("x" * 9999))) == 300
    assert reason(ValueError("\n\n  a:\n b:\n c\n d")) == "a: b: c"
