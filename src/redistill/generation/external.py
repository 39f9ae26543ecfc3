"""Checks of the results of engines that are not part of the package.

An invalid result raises an error, so that the student is never trained on invalid text.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from redistill.contracts import Engine, EngineCapabilities, Generation, GenerationRequest, Sampling
from redistill.errors import RedistillError, TrainingError, one_line


class CheckedEngine:
    """Wraps an engine: checks its results, and converts exceptions to TrainingError.

    Args:
        engine: The engine that is wrapped.
        name: Name of the engine in error messages: the value of `kind` in the recipe.
        vocabulary: Size of the vocabulary; every token id must be below this size.

    Raises:
        TrainingError: raised by `sync` and `generate` if the engine raises an error or returns an invalid result.

    Example:
        >>> class Silent:
        ...     capabilities = EngineCapabilities()
        ...     def generate(self, requests, sampling):
        ...         return []
        >>> request = GenerationRequest(prompt_ids=(5, 6), max_new_tokens=3, seed=1, stream=("response", 0, 0))
        >>> CheckedEngine(Silent(), "mine:Silent", vocabulary=8).generate([request], Sampling())
        Traceback (most recent call last):
            ...
        redistill.errors.TrainingError: engine mine:Silent: 0 results for 1 requests; return one result for each request
    """

    def __init__(self, engine: Engine, name: str, vocabulary: int) -> None:
        self.engine, self._name, self._vocabulary = engine, name, vocabulary

    @property
    def capabilities(self) -> EngineCapabilities:
        """The features of the wrapped engine, such as sampling from a mixture."""
        return self.engine.capabilities

    def sync(self, student: nn.Module, step: int) -> None:
        """Update the wrapped engine to the weights of the student.

        Raises:
            TrainingError: the engine raised an error.
        """
        with self._checked("sync"):
            self.engine.sync(student, step)

    def generate(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> list[Generation]:
        """Return the results of the wrapped engine after checking them.

        Raises:
            TrainingError: the engine raised an error, the number of results is wrong, or a result is invalid.
        """
        with self._checked("generate"):
            generations = list(self.engine.generate(requests, sampling))
        if len(generations) != len(requests):
            counts = f"{len(generations)} results for {len(requests)} requests"
            raise TrainingError(f"engine {self._name}: {counts}; return one result for each request")
        for request, generation in zip(requests, generations):
            if fault := self._fault(request, generation):
                raise TrainingError(f"engine {self._name}: result of {request.stream}: {fault}")
        return generations

    def _fault(self, request: GenerationRequest, generation: Generation) -> str | None:
        """Return why `generation` is not a valid result of `request`; None if it is valid."""
        if not isinstance(generation, Generation) or not isinstance(generation.token_ids, tuple):
            return "must be a redistill.contracts.Generation whose token_ids are a tuple"
        length = len(generation.token_ids)
        if not 1 <= length <= request.max_new_tokens:
            return f"{length} tokens; must be 1 to {request.max_new_tokens}, including the end token of a finished text"
        if any(not isinstance(token, int) or not 0 <= token < self._vocabulary for token in generation.token_ids):
            return f"a token id is not a whole number below {self._vocabulary}, the size of the vocabulary"
        return None

    @contextmanager
    def _checked(self, call: str) -> Iterator[None]:
        """Context that converts exceptions other than RedistillError to TrainingError."""
        try:
            yield
        except RedistillError:
            raise
        except Exception as error:
            raise TrainingError(f"engine {self._name}: {call} failed ({one_line(error)})") from error
