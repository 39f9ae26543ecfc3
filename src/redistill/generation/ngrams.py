"""Bans of repeated n-grams.

This module imports only the standard library, because the vLLM plugin (`generation.vllm_plugin`) uses the module.  The
plugin runs in the environment of a server, where the packages that redistill requires may be missing.
"""

from collections.abc import Sequence


class NgramBan:
    """Finds the tokens that would repeat an n-gram of a sequence.

    N-grams are counted in prompt and response together; padding does not count.  For sequences without padding, the result
    equals that of `NoRepeatNGramLogitsProcessor` in transformers.

    Args:
        size: Length n of the n-grams, >= 1.
        rows: Token ids of the prompt of each sequence; `push` appends the tokens of the response.
    """

    def __init__(self, size: int, rows: Sequence[Sequence[int]]) -> None:
        self._size = size
        self._history: list[list[int]] = [[] for _ in rows]
        self._followers: list[dict[tuple[int, ...], list[int]]] = [{} for _ in rows]
        for row, tokens in enumerate(rows):
            for token in tokens:
                self.push(row, token)

    def push(self, row: int, token: int) -> None:
        """Append `token` to the sequence with index `row`."""
        if len(self._history[row]) >= self._size - 1:
            self._followers[row].setdefault(self._last(row), []).append(token)
        self._history[row].append(token)

    def banned(self, row: int) -> list[int]:
        """Return the token ids that must not follow the sequence with index `row`."""
        return self._followers[row].get(self._last(row), [])

    def _last(self, row: int) -> tuple[int, ...]:
        history = self._history[row]
        return tuple(history[len(history) - self._size + 1 :])
