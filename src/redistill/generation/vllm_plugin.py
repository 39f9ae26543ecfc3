"""A plugin of vLLM that bans repeated n-grams.

Only the process of the server imports this module.  vLLM finds it through the entry point in pyproject.toml if redistill is
installed in its environment (`pip install --no-deps redistill`).  A request asks for the ban by
`vllm_xargs: {"no_repeat_ngram_size": 6}`; other requests are not changed.  The n-grams are those of the local engine and of
transformers, see `NgramBan`.
"""

from collections.abc import Mapping
from typing import Protocol

import torch

from redistill.generation.ngrams import NgramBan

try:
    from vllm.v1.sample.logits_processor import LogitsProcessor, process_dict_updates
except ImportError:  # outside of a server, such as when all modules are imported to test their documentation
    LogitsProcessor = object
FIELD = "no_repeat_ngram_size"  # as in servers.completions, which is not imported, since a server may lack its packages


class SamplingParams(Protocol):
    """The part of vLLM's class of the same name that the plugin uses.

    `extra_args` has the arguments of a request that vLLM does not know.
    """

    extra_args: Mapping[str, object] | None


class RequestBan:
    """The ban of one request.

    Args:
        size: Length n of the n-grams, >= 1.
        prompt_ids: Tokens of the prompt.
        output_ids: Generated tokens; the server appends to this list.

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
        """Return the tokens that must not follow the text."""
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
        """Check the argument of a request.

        Raises:
            ValueError: the argument is not a whole number >= 0; vLLM then rejects the request.
        """
        size = (sampling_params.extra_args or {}).get(FIELD, 0)
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise ValueError(f"{FIELD} = {size!r}: must be a whole number >= 0")

    def is_argmax_invariant(self) -> bool:
        """Return False: the ban may exclude the most probable token."""
        return False

    def update_state(self, batch_update: object) -> None:
        """Start, end and move the bans of requests, as the server's batch changes."""
        process_dict_updates(self._bans, batch_update, _ban_of)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Set the logits of banned tokens to -inf in place; return the logits."""
        for row, ban in self._bans.items():
            logits[row, ban.banned()] = -torch.inf
        return logits


def _ban_of(sampling_params: SamplingParams, prompt_ids: list[int] | None, output_ids: list[int]) -> RequestBan | None:
    """Return the ban of a new request; None if it asks for none."""
    size = (sampling_params.extra_args or {}).get(FIELD, 0)
    return RequestBan(size, prompt_ids or [], output_ids) if isinstance(size, int) and size else None
