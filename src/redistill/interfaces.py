"""Types for the models and tokenizers of transformers.

The types declare only what redistill uses. They exist because the type annotations of transformers are not sufficient. Only
type checkers use these types. Do not use them with `isinstance`: a loaded model is an instance of a class of transformers, and
not of `CausalModel`.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, Protocol, TypeVar, overload

import torch
from torch import nn

Value = TypeVar("Value")

Autocast = Callable[[], AbstractContextManager[object]]
"""Function that returns the autocast context in which models run."""


class Gather(Protocol):
    """Collective operation that concatenates the lists of all processes.

    Each process passes its own list, and receives the elements of all lists, ordered by the rank of the process.
    """

    def __call__(self, values: list[Value], /) -> list[Value]: ...


class Tokenizer(Protocol):
    """A tokenizer of transformers."""

    bos_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int | None
    eos_token: str | None
    pad_token: str | None
    chat_template: str | dict[str, str] | None

    @property
    def all_special_ids(self) -> list[int]: ...

    @property
    def special_tokens_map(self) -> Mapping[str, object]: ...

    @property
    def added_tokens_decoder(self) -> Mapping[int, object]: ...

    @overload
    def __call__(self, text: str, **options: bool) -> Mapping[str, list[int]]: ...

    @overload
    def __call__(self, text: list[str], **options: bool) -> Mapping[str, list[list[int]]]: ...

    def __len__(self) -> int: ...

    def encode(self, text: str, **options: bool) -> list[int]: ...

    def decode(self, token_ids: Sequence[int], **options: bool) -> str: ...

    def get_vocab(self) -> dict[str, int]: ...

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, object]],
        *,
        tokenize: Literal[False],
        add_generation_prompt: bool = False,
        **options: object,
    ) -> str: ...

    def get_chat_template(self) -> str: ...

    def save_pretrained(self, save_directory: Path) -> object: ...


class ModelSettings(Protocol):
    """The config of a model of transformers.

    Fields that only some model families have are not declared in this class; code reads them with `getattr`.
    """

    model_type: str
    vocab_size: int
    name_or_path: str
    num_hidden_layers: int
    max_position_embeddings: int
    _attn_implementation: str | None
    _experts_implementation: str | None

    def get_text_config(self) -> "ModelSettings": ...

    def to_dict(self) -> dict[str, object]: ...

    @classmethod
    def from_dict(cls, config_dict: dict[str, object]) -> "ModelSettings": ...


class CausalModel(nn.Module):
    """A causal language model of transformers."""

    config: ModelSettings
    base_model: nn.Module
    name_or_path: str
    dtype: torch.dtype
    device: torch.device
    generation_config: object

    get_input_embeddings: Callable[[], nn.Module]
    get_output_embeddings: Callable[[], nn.Module]
    from_pretrained: Callable[..., tuple["CausalModel", Mapping[str, Sequence[str]]]]
    save_pretrained: Callable[..., object]
    tie_weights: Callable[[], object]
