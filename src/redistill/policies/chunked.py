"""Generation of drafts in chunks, until an error is found.

If the tokens after an error are discarded, generating them is wasted time.  Therefore the engine generates a few tokens of each
draft at a time.  Student and teacher score these tokens, and only drafts without an error are continued.  The error of a draft
is the first position at which the models disagree strongly.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import nn

from redistill.contracts import Engine, EngineCapabilities, Generation, GenerationRequest, Sampling, TokenSequence

HasError = Callable[[int, list[TokenSequence]], list[bool]]


class ChunkedEngine:
    """An engine that generates texts in chunks, and ends a text at an error.

    The chunk that contains the error is the last chunk of the text.

    All chunks of a request use one stream of random numbers.  Therefore the tokens are the same as without chunks, up to
    rounding.  The wrapped engine should have a prefix memory, which stores states of texts; otherwise it reads the whole
    text again for each chunk.

    Args:
        engine: The wrapped engine.
        chunk_tokens: Number of tokens of a chunk, >= 1.
        has_error: Function that receives the step and the texts so far, as sequences in which only the tokens of the last
            chunk are targets.  It returns for each text whether its last chunk has an error.

    Example:
        >>> from redistill.testing.fixture import make_fixture  # two random models of a few thousand parameters
        >>> engine = ChunkedEngine(make_fixture().tools.engine, 2, lambda step, sequences: [True] * len(sequences))
        >>> request = GenerationRequest(prompt_ids=(5, 6), max_new_tokens=9, seed=1, stream=("response", 0, 0))
        >>> len(engine.generate([request], Sampling())[0].token_ids) <= 2
        True
    """

    def __init__(self, engine: Engine, chunk_tokens: int, has_error: HasError) -> None:
        self._engine, self._chunk_tokens, self._has_error = engine, chunk_tokens, has_error

    @property
    def capabilities(self) -> EngineCapabilities:
        """The features of the wrapped engine."""
        return self._engine.capabilities

    def sync(self, student: nn.Module, step: int) -> None:
        """Transfer the weights of the student to the wrapped engine."""
        self._engine.sync(student, step)

    def generate(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> list[Generation]:
        """Continue every request, up to and including its first chunk with an error.

        The results are in the order of the requests.  The field `stream` of each request must be (purpose, step, index of
        the training example).
        """
        found = [Generation(token_ids=(), finished=False)] * len(requests)
        unfinished = [index for index, request in enumerate(requests) if request.max_new_tokens > 0]
        while unfinished:
            parts = [self._part(requests[index], found[index].token_ids) for index in unfinished]
            generations = self._engine.generate(parts, sampling)
            chunks = [_scored(part, new.token_ids) for part, new in zip(parts, generations, strict=True)]
            has_error = self._has_error(int(parts[0].stream[1]), chunks)
            for index, new in zip(unfinished, generations, strict=True):
                found[index] = replace(new, token_ids=found[index].token_ids + new.token_ids, logprobs=None)
            unfinished = [
                index
                for index, is_found in zip(unfinished, has_error, strict=True)
                if not (is_found or found[index].finished or len(found[index].token_ids) == requests[index].max_new_tokens)
            ]
        return found

    def _part(self, request: GenerationRequest, token_ids: tuple[int, ...]) -> GenerationRequest:
        """Return the request for the next chunk after `token_ids`."""
        return replace(
            request,
            prompt_ids=request.prompt_ids + token_ids,
            max_new_tokens=min(self._chunk_tokens, request.max_new_tokens - len(token_ids)),
            skipped_tokens=request.skipped_tokens + len(token_ids),
        )


def _scored(part: GenerationRequest, token_ids: tuple[int, ...]) -> TokenSequence:
    """Return prompt and text so far; the targets are the tokens of the last chunk."""
    supervised = (False,) * len(part.prompt_ids) + (True,) * len(token_ids)
    sample = int(part.stream[-1])
    return TokenSequence(sample=sample, token_ids=part.prompt_ids + token_ids, supervised=supervised, origin="student")
