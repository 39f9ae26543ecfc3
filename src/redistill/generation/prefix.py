"""What models have read or written within one step, so that no text's beginning is read twice.

A `PrefixMemory` holds keys, values and last hidden states by token ids.  Whoever reads looks there first and reads what is
left.  Only rounding tells the result from that of reading all; so in fp32 a memory hardly ever changes a text, and what
it does not hold is simply read.  It belongs to one model with the weights of one step: its owner drops it when they change.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers.cache_utils import Cache

from redistill.generation.kv import new_cache, prefixes_can_be_reused
from redistill.models.families import body, body_module
from redistill.tensors import pad

MEMORY_BYTES = 1 << 30
"""Of one model's memory; texts beyond it are not remembered."""
FEW_TOKENS = 32
"""Rows with no more than this left to read are read together; beyond it the longest has at most twice the shortest's."""

TokenIds = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Reading:
    """What a model makes of a text's T tokens.

    Args:
        kv_LXHTD: Keys (X = 0) and values (X = 1) of the L layers and H heads, keys with their positions in them.
        hidden_TD: The last hidden states, after the final norm.
    """

    kv_LXHTD: torch.Tensor
    hidden_TD: torch.Tensor

    @property
    def num_bytes(self) -> int:
        return self.kv_LXHTD.nbytes + self.hidden_TD.nbytes


class PrefixMemory:
    """Readings of texts by their token ids, of one model as it is.

    Args:
        max_bytes: A text whose reading would go beyond this is not remembered.
    """

    def __init__(self, max_bytes: int = MEMORY_BYTES) -> None:
        self._max_bytes, self._num_bytes = max_bytes, 0
        self._texts: list[TokenIds] = []  # sorted, so that the longest common prefix is with a neighbour
        self._readings: dict[TokenIds, Reading] = {}

    def recall(self, token_ids: TokenIds) -> tuple[int, Reading | None]:
        """How many leading tokens are known, and a reading that begins with them."""
        place = bisect_left(self._texts, token_ids)
        found = [(_common(text, token_ids), text) for text in self._texts[max(0, place - 1) : place + 1]]
        known, text = max(found, default=(0, ()))
        return (known, self._readings[text]) if known else (0, None)

    def remember(self, token_ids: TokenIds, cache: Cache, row: int, columns: slice, hidden_TD: torch.Tensor) -> None:
        """Keep a row of a cache, unless there is no room or it is known already.

        Args:
            token_ids: The T tokens.
            cache: What has read them; `row` and the T `columns` say where they stand in it.
            hidden_TD: Their last hidden states.
        """
        pairs = [(layer.keys[row, :, columns], layer.values[row, :, columns]) for layer in cache.layers]
        keys, values = pairs[0]
        num_bytes = len(pairs) * (keys.nbytes + values.nbytes) + hidden_TD.nbytes
        is_even = all(part.shape == keys.shape for pair in pairs for part in pair)
        if not is_even or self._num_bytes + num_bytes > self._max_bytes or self.recall(token_ids)[0] == len(token_ids):
            return
        kv_LXHTD = torch.stack([part for pair in pairs for part in pair]).unflatten(0, (len(pairs), 2))
        self._readings[token_ids] = Reading(kv_LXHTD, hidden_TD.clone())  # a view would keep its whole batch
        self._num_bytes += num_bytes
        insort(self._texts, token_ids)


def _common(first: TokenIds, second: TokenIds) -> int:
    """Length of the longest common prefix."""
    for place, (one, other) in enumerate(zip(first, second)):
        if one != other:
            return place
    return min(len(first), len(second))


def load_prefixes(cache: Cache, prefixes: Sequence[tuple[int, Reading | None]], width: int) -> torch.Tensor:
    """Fill an empty cache with `width` columns: the first tokens of each reading, padded on the left with zeros.

    Args:
        cache: One of `new_cache`, of a model whose prefixes can be reused.
        prefixes: For each row how many tokens, at most `width`, and whose.

    Returns:
        Their hidden states the same way, hidden_BCD.
    """
    some = next(reading for tokens, reading in prefixes if tokens and reading is not None)
    layers, two, heads, _, size = some.kv_LXHTD.shape
    kv_LXBHCD = some.kv_LXHTD.new_zeros((layers, two, len(prefixes), heads, width, size))
    hidden_BCD = some.hidden_TD.new_zeros((len(prefixes), width, some.hidden_TD.shape[1]))
    for row, (tokens, reading) in enumerate(prefixes):
        if reading is not None:
            kv_LXBHCD[:, :, row, :, width - tokens :] = reading.kv_LXHTD[:, :, :, :tokens]
            hidden_BCD[row, width - tokens :] = reading.hidden_TD[:tokens]
    for layer, (keys, values) in zip(cache.layers, kv_LXBHCD, strict=True):
        layer.update(keys, values)
    return hidden_BCD


class PrefixReader:
    """A model that reads batches, with or without a memory; in eval mode without gradient, as its caller sees to.

    Args:
        model: A causal language model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model, self._body = model, body(model)
        self.can_reuse = prefixes_can_be_reused(model)

    def rows(
        self,
        ids_BT: torch.Tensor,
        mask_BT: torch.Tensor,
        position_N: torch.Tensor,
        memory: PrefixMemory | None,
        *,
        remember: bool = False,
    ) -> torch.Tensor:
        """The hidden states that predict some tokens of right-padded sequences, hidden_ND.

        Args:
            ids_BT, mask_BT: The sequences.
            position_N: Flat places in [B * T], none of them a sequence's last token.
            memory: Looked into before reading; None, or a family whose prefixes cannot be reused, reads everything.
            remember: Whether what is read goes into it.
        """
        if memory is None or not self.can_reuse:
            return self._body(ids_BT, mask_BT).flatten(0, 1)[position_N]
        lengths = mask_BT.sum(dim=1).tolist()
        # The hidden state of a last token predicts nothing.
        texts = [tuple(ids[: length - 1]) for ids, length in zip(ids_BT.tolist(), lengths)]
        hidden = self._read(texts, memory, ids_BT.device, remember)
        hidden_BTD = nn.utils.rnn.pad_sequence(hidden, batch_first=True)
        row_N, column_N = position_N // ids_BT.shape[1], position_N % ids_BT.shape[1]
        return hidden_BTD[row_N, column_N]

    def _read(
        self, texts: Sequence[TokenIds], memory: PrefixMemory, device: torch.device, remember: bool
    ) -> list[torch.Tensor]:
        """hidden_TD of each text; only what the memory does not know is read."""
        known = [memory.recall(text) for text in texts]
        hidden = [torch.empty(0) if reading is None else reading.hidden_TD[:tokens] for tokens, reading in known]
        left = [len(text) - tokens for text, (tokens, _) in zip(texts, known)]
        for group in _alike(left):
            prefixes, width = [known[place] for place in group], max(known[place][0] for place in group)
            new_ids = [texts[place][known[place][0] :] for place in group]
            cache = new_cache(self._model)
            before_GCD = load_prefixes(cache, prefixes, width) if width else None
            new_GUD = self._read_on(cache, new_ids, [tokens for tokens, _ in prefixes], width, device)
            for row, place in enumerate(group):
                tokens, whole_TD = known[place][0], new_GUD[row, : left[place]]
                if before_GCD is not None:
                    whole_TD = torch.cat([before_GCD[row, width - tokens :], whole_TD])
                hidden[place] = whole_TD
                if remember:
                    columns = slice(width - tokens, width + left[place])
                    memory.remember(texts[place], cache, row, columns, whole_TD)
        return hidden

    def _read_on(
        self, cache: Cache, new_ids: Sequence[TokenIds], known: Sequence[int], width: int, device: torch.device
    ) -> torch.Tensor:
        """Read on behind `width` columns of left-padded prefixes: new tokens are padded on the right; hidden_GUD."""
        ids_GU, mask_GU = pad(new_ids, 0)
        known_G1 = torch.tensor(known)[:, None]
        mask_GC = (torch.arange(width) >= width - known_G1).to(mask_GU.dtype)
        position_GU = (known_G1 + mask_GU.cumsum(dim=1) - 1).clamp(min=0)  # padding stands still, inside the positions
        hidden_GUD: torch.Tensor = body_module(self._model)(
            input_ids=ids_GU.to(device),
            attention_mask=torch.cat([mask_GC, mask_GU], dim=1).to(device),
            position_ids=position_GU.to(device),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return hidden_GUD


def _alike(left: Sequence[int]) -> Iterator[list[int]]:
    """Places with something left to read, in groups of about as much."""
    group: list[int] = []
    for place in sorted((place for place, tokens in enumerate(left) if tokens), key=lambda place: left[place]):
        if group and left[place] > max(FEW_TOKENS, 2 * left[group[0]]):
            yield group
            group = []
        group.append(place)
    if group:
        yield group
