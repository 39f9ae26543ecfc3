"""Prefix memory: stored states of texts, so that prefixes are not read again.

To read tokens means to run the model on them.  A `PrefixMemory` maps token ids to the keys, values and last hidden states
that the model computed for them.  Before a text is read, its longest stored prefix is looked up, and only the tokens after
this prefix are read.  Reuse changes hidden states by rounding only, so in fp32 it very rarely changes generated text.  A
memory is valid for one model with fixed weights.  When the weights change, the code that created the memory must delete it.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers.cache_utils import Cache

from redistill.models.caches import CachedBody
from redistill.models.families import body
from redistill.processes.memory import unallocated_bytes
from redistill.tensors import pad

MEMORY_BYTES = 1 << 30
"""Default maximum size of a prefix memory in bytes; texts that would exceed it are not stored."""
DEVICE_PART = 4
"""On a GPU, the maximum size is the unallocated memory divided by this number.

A run has up to two prefix memories: one of the teacher, and one of the student.
"""
DEVICE_STEP_BYTES = 1 << 26
"""On a GPU, the maximum size is a multiple of this number, so that a resumed run has the same maximum size."""
FEW_TOKENS = 32
"""Texts with at most this number of unread tokens (tokens without stored states) are read in one group.

In any other group, no text has more than twice as many unread tokens as another.
"""

TokenIds = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class PrefixStates:
    """States of a model for the T tokens of a text.

    Args:
        kv_LXHTD: Keys (X = 0) and values (X = 1) of the L layers and H heads, each of size D; keys include their position
            encoding.
        hidden_TD: The hidden states of the last layer, after the final norm; here D is the width of the model.
    """

    kv_LXHTD: torch.Tensor
    hidden_TD: torch.Tensor


def memory_limit(device: torch.device | str) -> int:
    """Return the maximum size of a prefix memory on a device, in bytes.

    On a GPU it is a quarter of the unallocated memory, on a CPU 1 GiB.

    Example:
        >>> memory_limit("cpu") == MEMORY_BYTES
        True
    """
    unallocated = unallocated_bytes(device)
    return MEMORY_BYTES if unallocated is None else unallocated // DEVICE_PART // DEVICE_STEP_BYTES * DEVICE_STEP_BYTES


class PrefixMemory:
    """Maps token ids of texts to the states of one model with fixed weights.

    The states of a text are the keys, values and last hidden states that the model computed for the tokens of the text.

    Args:
        max_bytes: Maximum size of all states together, in bytes; a text that would exceed it is not stored.

    Attributes:
        dropped_tokens: Number of tokens of the texts that were not stored because of the maximum size.
    """

    def __init__(self, max_bytes: int = MEMORY_BYTES) -> None:
        self._max_bytes, self._num_bytes = max_bytes, 0
        self._texts: list[TokenIds] = []  # sorted, so that the longest common prefix is with a neighbour
        self._states: dict[TokenIds, PrefixStates] = {}
        self.dropped_tokens = 0

    def report(self, model: str, note: Callable[[str], None]) -> bool:
        """Report to the user if texts were not stored because of the maximum size.

        Args:
            model: The model of this memory, such as "teacher".
            note: Function that prints one line to the user.

        Returns:
            True if `note` was called.
        """
        if not self.dropped_tokens:
            return False
        note(
            f"prefix memory: {self.dropped_tokens} tokens of the {model} were not stored in one update, since the limit is "
            f"{self._max_bytes / 2**30:.2f} GiB; the {model} runs on them again; a lower training.batch_size needs less memory"
        )
        return True

    def recall(self, token_ids: TokenIds) -> tuple[int, PrefixStates | None]:
        """Find the longest prefix of `token_ids` whose states are stored.

        Returns:
            The length of the prefix, and the states of a text that begins with it; (0, None) if no prefix is stored.
        """
        index = bisect_left(self._texts, token_ids)
        found = [(_common_length(text, token_ids), text) for text in self._texts[max(0, index - 1) : index + 1]]
        known, text = max(found, default=(0, ()))
        return (known, self._states[text]) if known else (0, None)

    def remember(self, token_ids: TokenIds, cache: Cache, row: int, columns: slice, hidden_TD: torch.Tensor) -> None:
        """Copy the states of a text from one row of a KV cache into the memory.

        Nothing is stored in three cases: the states of the text are stored already, the memory would exceed its limit, or
        layers have states of different shapes.

        Args:
            token_ids: The T tokens.
            cache: The KV cache that contains the keys and values of the tokens.
            row: Row of the cache that contains the text.
            columns: The T columns of the cache that contain the tokens.
            hidden_TD: The last hidden states of the tokens.
        """
        pairs = [(layer.keys[row, :, columns], layer.values[row, :, columns]) for layer in cache.layers]
        keys, values = pairs[0]
        num_bytes = len(pairs) * (keys.nbytes + values.nbytes) + hidden_TD.nbytes
        is_even = all(part.shape == keys.shape for pair in pairs for part in pair)
        if not is_even or self.recall(token_ids)[0] == len(token_ids):
            return
        if self._num_bytes + num_bytes > self._max_bytes:
            self.dropped_tokens += len(token_ids)
            return
        kv_LXHTD = torch.stack([part for pair in pairs for part in pair]).unflatten(0, (len(pairs), 2))
        self._states[token_ids] = PrefixStates(kv_LXHTD, hidden_TD.clone())  # a view would keep its whole batch alive
        self._num_bytes += num_bytes
        insort(self._texts, token_ids)


def _common_length(first: TokenIds, second: TokenIds) -> int:
    """Return the length of the longest common prefix of two texts."""
    pairs = enumerate(zip(first, second))
    return next((index for index, (one, other) in pairs if one != other), min(len(first), len(second)))


def load_prefixes(reader: CachedBody, prefixes: Sequence[tuple[int, PrefixStates | None]], width: int) -> torch.Tensor:
    """Fill an empty KV cache with one prefix per row, padded on the left with zeros.

    Args:
        reader: The body whose empty cache is filled; `reader.can_reuse` must be True.
        prefixes: For each row, the number of tokens of its prefix, at most `width`, and the states of a text that begins with
            this prefix.
        width: Number of columns to fill.

    Returns:
        hidden_BCD, the last hidden states of the prefixes, padded on the left with zeros.
    """
    some = next(states for tokens, states in prefixes if tokens and states is not None)
    layers, two, heads, _, size = some.kv_LXHTD.shape
    kv_LXBHCD = some.kv_LXHTD.new_zeros((layers, two, len(prefixes), heads, width, size))
    hidden_BCD = some.hidden_TD.new_zeros((len(prefixes), width, some.hidden_TD.shape[1]))
    for row, (tokens, states) in enumerate(prefixes):
        if states is not None:
            kv_LXBHCD[:, :, row, :, width - tokens :] = states.kv_LXHTD[:, :, :, :tokens]
            hidden_BCD[row, width - tokens :] = states.hidden_TD[:tokens]
    reader.load(kv_LXBHCD)
    return hidden_BCD


class PrefixReader:
    """Computes hidden states of batches, with or without a prefix memory.

    A prefix memory stores keys, values and hidden states of texts.  A later text with the same first tokens reuses them.

    Args:
        model: A causal language model; the caller sets eval mode and disables gradients.
    """

    def __init__(self, model: nn.Module) -> None:
        self._body, self._reader = body(model), CachedBody(model)

    def rows(
        self,
        ids_BT: torch.Tensor,
        mask_BT: torch.Tensor,
        position_N: torch.Tensor,
        memory: PrefixMemory | None,
        *,
        texts: Sequence[TokenIds] | None = None,
        remember: bool = False,
    ) -> torch.Tensor:
        """Return the hidden states at some positions of right-padded sequences.

        Args:
            ids_BT: Token ids of the sequences.
            mask_BT: Attention mask of the sequences.
            position_N: Positions in the flattened batch, in [0, B * T); the last token of a sequence must not be among them.
            memory: The prefix memory.  The model reads only the tokens after the longest prefix that is stored in the memory.
                All tokens are read if `memory` is None, or if the model's family does not allow prefixes to be reused.
            texts: Token ids of the sequences without padding.  If None, they are copied from the device of `ids_BT`, for which
                the host waits.
            remember: Whether the states of these sequences are added to the memory.

        Returns:
            hidden_ND, in the order of `position_N`.
        """
        if memory is None or not self._reader.can_reuse:
            return self._body(ids_BT, mask_BT).flatten(0, 1)[position_N]
        if texts is None:
            rows = torch.cat([mask_BT.sum(dim=1, keepdim=True), ids_BT], dim=1).tolist()  # one copy to the host
            texts = [tuple(ids[:length]) for length, *ids in rows]
        # The last token of a text is not read, since its hidden state predicts no target.
        hidden = self._read([text[:-1] for text in texts], memory, ids_BT.device, remember)
        hidden_BTD = nn.utils.rnn.pad_sequence(hidden, batch_first=True)
        row_N, column_N = position_N // ids_BT.shape[1], position_N % ids_BT.shape[1]
        return hidden_BTD[row_N, column_N]

    def _read(
        self, texts: Sequence[TokenIds], memory: PrefixMemory, device: torch.device, remember: bool
    ) -> list[torch.Tensor]:
        """Return the hidden states hidden_TD of each text.

        Only the tokens after the longest stored prefix of a text are read.  If `remember` is True, the states are added to the
        memory.
        """
        known = [memory.recall(text) for text in texts]
        hidden = [torch.empty(0) if states is None else states.hidden_TD[:tokens] for tokens, states in known]
        left = [len(text) - tokens for text, (tokens, _) in zip(texts, known)]
        for group in _groups_of_similar_length(left):
            self._reader.start()
            prefixes = [known[index] for index in group]
            width = max(tokens for tokens, _ in prefixes)
            before_GCD = load_prefixes(self._reader, prefixes, width) if width else None
            ids_GU, mask_GU = pad([texts[index][known[index][0] :] for index in group], 0)
            known_G1 = torch.tensor([tokens for tokens, _ in prefixes])[:, None]
            mask_GC = (torch.arange(width) >= width - known_G1).to(mask_GU.dtype)
            # Positions do not increase in padding, so that they stay within the model's limit.
            position_GU = (known_G1 + mask_GU.cumsum(dim=1) - 1).clamp(min=0)
            mask_GC = torch.cat([mask_GC, mask_GU], dim=1)
            new_GUD = self._reader.read(ids_GU.to(device), mask_GC.to(device), position_GU.to(device))
            for row, index in enumerate(group):
                tokens, whole_TD = known[index][0], new_GUD[row, : left[index]]
                if before_GCD is not None:
                    whole_TD = torch.cat([before_GCD[row, width - tokens :], whole_TD])
                hidden[index] = whole_TD
                if remember:
                    columns = slice(width - tokens, width + left[index])
                    memory.remember(texts[index], self._reader.cache, row, columns, whole_TD)
        return hidden


def _groups_of_similar_length(left: Sequence[int]) -> Iterator[list[int]]:
    """Yield groups of texts with similar numbers of unread tokens.

    Unread tokens are tokens on which the model has to run.  `left` contains the number of unread tokens of each text.  A group
    is a list of indices of `left`.  A text without unread tokens is in no group.
    """
    group: list[int] = []
    for index in sorted((index for index, tokens in enumerate(left) if tokens), key=lambda index: left[index]):
        if group and left[index] > max(FEW_TOKENS, 2 * left[group[0]]):
            yield group
            group = []
        group.append(index)
    if group:
        yield group
