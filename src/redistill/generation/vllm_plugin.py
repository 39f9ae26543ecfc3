"""A vLLM plugin that bans repeated n-grams.

Only the process of a vLLM server uses this module.  vLLM finds it through the entry point in pyproject.toml if redistill is
installed in the environment of the server (`pip install --no-deps redistill`).  A request with the field
`vllm_xargs: {"no_repeat_ngram_size": 6}` bans 6-grams; requests without the field are not affected.  The n-grams are those of
the local engine and of transformers (see `NgramBan`).
"""

from collections.abc import Mapping
from typing import Protocol

import torch

from redistill.generation.ngrams import NgramBan

try:
    from vllm.v1.sample.logits_processor import LogitsProcessor, process_dict_updates
except ImportError:  # vLLM is not installed, such as in tests of the documentation, which import all modules
    LogitsProcessor = object
FIELD = "no_repeat_ngram_size"  # as in servers.completions, which needs packages that a server may lack


class SamplingParams(Protocol):
    """The part of vLLM's class `SamplingParams` that the plugin uses.

    `extra_args` contains the field `vllm_xargs` of a request: arguments that vLLM does not interpret itself.
    """

    extra_args: Mapping[str, object] | None


class RequestBan:
    """The ban of repeated n-grams in the text of one request.

    Args:
        size: Length n of the n-grams, >= 1.
        prompt_ids: Tokens of the prompt.
        output_ids: Tokens generated so far.  The server appends each new token to this list.

    Example:
        >>> output = [7]
        >>> ban = RequestBan(2, [5, 6, 7, 5], output)
        >>> ban.banned()  # 7 was followed by 5
        [5]
        >>> output.append(6)
        >>> ban.banned()
        [7]
    """

    def __init__(self, size: int, prompt_ids: list[int], output_ids: list[int]) -> None:
        self._ban, self._output, self._num_read = NgramBan(size, [prompt_ids]), output_ids, 0

    def banned(self) -> list[int]:
        """Return the token ids that would repeat an n-gram as the next token."""
        for token in self._output[self._num_read :]:
            self._ban.push(0, token)
        self._num_read = len(self._output)
        return self._ban.banned(0)


class NoRepeatNgram(LogitsProcessor):  # type: ignore[misc]  # vLLM is not installed where types are checked
    """Sets the logits of tokens that would repeat an n-gram to -inf.

    The methods are those of vLLM's class `LogitsProcessor`, version 0.32.

    Args:
        vllm_config, device, is_pin_memory: Arguments that vLLM passes; they are not used.
    """

    def __init__(self, vllm_config: object, device: torch.device, is_pin_memory: bool) -> None:
        self._bans: dict[int, RequestBan] = {}

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Check the n-gram length in a request.

        Raises:
            ValueError: the length is not a whole number >= 0; vLLM then rejects the request.
        """
        size = (sampling_params.extra_args or {}).get(FIELD, 0)
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise ValueError(f"{FIELD} = {size!r}: must be a whole number >= 0")

    def is_argmax_invariant(self) -> bool:
        """Return False: the ban may exclude the most probable token."""
        return False

    def update_state(self, batch_update: object) -> None:
        """Add, remove and move bans, as the server changes the rows of its batch."""
        process_dict_updates(self._bans, batch_update, _ban_of)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Set the logits of banned tokens to -inf in place; return the logits."""
        for row, ban in self._bans.items():
            logits[row, ban.banned()] = -torch.inf
        return logits


def _ban_of(sampling_params: SamplingParams, prompt_ids: list[int] | None, output_ids: list[int]) -> RequestBan | None:
    """Return the ban of a new request; None if the request sets no ban."""
    size = (sampling_params.extra_args or {}).get(FIELD, 0)
    return RequestBan(size, prompt_ids or [], output_ids) if isinstance(size, int) and size else None
