"""Decoding of a batch by one model, with a KV cache and stored states of prefixes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from redistill.generation.packed import Product, can_pack, packed_layers, packed_product
from redistill.generation.prefix import PrefixMemory, TokenIds, load_prefixes
from redistill.models.caches import CachedBody, Columns
from redistill.models.families import body_module, eval_mode, head
from redistill.models.static_cache import StaticBodies
from redistill.vocab_pass import Head
from redistill.vocab_pass.head import Products


class Decoder:
    """Predicts the next tokens of a batch of left-padded sequences with one model.

    A row of the batch is a sequence, and a column has one token of each row.  The first call of `logits` reads the prompts, and
    each further call reads one column.  To read tokens means to compute their hidden states, keys and values.

    Args:
        model: A causal language model.
        vocabulary: Logits are computed only for token ids below this number; None for all ids.
        memory: Prefix memory: the stored states of texts that the model has read.  Prefixes in the memory are not read again,
            and `remember` adds texts.  If None, every prompt is read.
        static: Returns the body of a model with a cache of fixed size.  If None, the cache grows.

    Attributes:
        num_classes: Number of token ids for which logits are computed.
        device: Device of the model's head.
        remembers: Whether there is a memory to which `remember` can add texts.
    """

    def __init__(
        self,
        model: nn.Module,
        vocabulary: int | None,
        memory: PrefixMemory | None = None,
        static: StaticBodies | None = None,
    ) -> None:
        self._model, self._reader = model, CachedBody(model) if static is None else static.of(model)
        self._head = head(model, vocabulary)
        self._logits: Product | None = None
        self._memory = memory if self._reader.can_reuse else None
        self.remembers = self._memory is not None
        self.num_classes = self._head.num_classes
        self.device = self._head.weight_VD.device

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Context for decoding: eval mode, no gradient, weights in a fast layout.

        On a CPU, decoding uses copies of the weights in a faster memory layout (packed.py).  Therefore the weights of the model
        must not change inside the context.
        """
        with eval_mode(self._model), torch.no_grad(), packed_layers(body_module(self._model)):
            yield

    def start(self, prompts: Sequence[TokenIds], max_new_tokens: int) -> None:
        """Start a new batch; load stored prefixes of the prompts into the KV cache.

        A stored prefix is the beginning of a text that the model has read before.  The prompts are left-padded to one
        length, and the next call of `logits` reads the same columns of all prompts.  Therefore that call can read the last
        tokens of a stored prefix again.

        Args:
            prompts: Token ids of the prompts.
            max_new_tokens: Maximum number of columns that are read after the prompts.
        """
        self._reader.start(len(prompts), max(map(len, prompts)) + max_new_tokens)
        self._hidden, self._read, self._lengths = Columns(), 0, [len(prompt) for prompt in prompts]
        if self._memory is None:
            return
        found = [self._memory.recall(prompt[:-1]) for prompt in prompts]
        unread = max(len(prompt) - known for prompt, (known, _) in zip(prompts, found, strict=True))
        width = max(self._lengths) - unread
        if width:
            prefixes = [(max(0, len(prompt) - unread), states) for prompt, (_, states) in zip(prompts, found, strict=True)]
            self._hidden.append(load_prefixes(self._reader, prefixes, width))
            self._read = width

    def logits(self, ids_LT: torch.Tensor, mask_LT: torch.Tensor, position_LT: torch.Tensor) -> torch.Tensor:
        """Run the model on the new columns; return the logits of each row's next token.

        A column has one token of each row of the batch.  Columns are new if the model has not run on them yet.

        Args:
            ids_LT: Token ids of all columns so far.
            mask_LT: Attention mask of these columns.
            position_LT: Position ids of these columns.

        Returns:
            logits_LV in float32, for the L rows that are left in the batch.
        """
        read, columns = self._read, ids_LT.shape[1]
        padding = [max(self._lengths) - length for length in self._lengths]
        if any(self._reader.is_outdated(read - width, columns - width) for width in padding):
            self._reader.start()
            read = 0
        hidden_LTD = self._reader.read(ids_LT[:, read:], mask_LT, position_LT[:, read:])
        self._read = columns
        if self._memory is not None:
            self._hidden.append(hidden_LTD)
        hidden_LD = hidden_LTD[:, -1]
        if self._logits is None:  # the dtype of the hidden states is known only here
            self._logits = _logits_of(self._head, hidden_LD)
        return self._logits(hidden_LD)

    def remember(self, row: int, token_ids: TokenIds, start: int) -> None:
        """Store the keys, values and hidden states of a row's text in the prefix memory.

        Args:
            row: Index of the row in the batch.
            token_ids: Token ids of the text.
            start: Index of the first token of the text in the left-padded row.
        """
        assert self._memory is not None
        columns = slice(start, start + len(token_ids))
        cache, cache_row = self._reader.cache, self._reader.row(row)
        self._memory.remember(token_ids, cache, cache_row, columns, self._hidden.view()[row, columns])

    def select(self, kept: torch.Tensor) -> None:
        """Keep only the rows of the batch whose indices are in `kept`."""
        self._reader.select(kept)
        if self._memory is not None:
            self._hidden.select(kept)


def _logits_of(head: Head, like_LD: torch.Tensor) -> Product:
    """Return a function that computes the logits of `head` from hidden states.

    If possible, the function uses a copy of the weight in a faster memory layout (packed.py).  `like_LD` is any tensor with
    the dtype of the hidden states.  If the model runs in bf16, hidden states and weights are rounded to bf16.  The logits
    are float32.
    """
    products, weight_VD = Products.like(like_LD), head.weight_VD.detach()[: head.vocabulary]
    if not can_pack(weight_VD, products.result):
        return head.prepared(like_LD).logits
    bias_V = None if head.bias_V is None else head.bias_V[: head.vocabulary]
    raw = packed_product(weight_VD.to(torch.bfloat16) if products.bf16 else weight_VD, bias_V, products.result)

    def logits(hidden_LD: torch.Tensor) -> torch.Tensor:
        return head.finish(raw(hidden_LD.to(torch.bfloat16) if products.bf16 else hidden_LD))

    return logits
