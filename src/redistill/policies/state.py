"""Converts the state of a policy to tensors and JSON for a checkpoint, and back.

Sequences would be long as JSON: a buffer of 1,000 sequences of 512 tokens needs 11 MB of JSON, and 2.6 MB as tensors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, islice, pairwise
from typing import TypeAlias, TypeGuard, cast

import numpy as np
import torch

from redistill.contracts import Origin, StateValue, TokenSequence
from redistill.errors import ConfigError
from redistill.records import Json

Path: TypeAlias = "tuple[str | int, ...]"
"""Position of a value in a nested state: a key for each mapping, and an index for each list."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredState:
    """The state of a policy, as a checkpoint stores it.

    Args:
        tensors: Tensors by name.  The name begins with the index of an entry: "3/token_ids" belongs to `entries[3]`.
        values: The state as JSON, with None for each value that is stored as tensors.
        entries: A description of each value that is stored as tensors.  "path" is its position in `values`, as keys and
            indices.  For a tuple of sequences there is also "origins", a list of the origins of the sequences.

    Example:
        >>> text = TokenSequence(sample=3, token_ids=(5, 6, 2), supervised=(False, True, True), origin="student")
        >>> stored = store({"threshold": 0.5, "texts": (text,)})
        >>> stored.values, stored.entries
        ({'threshold': 0.5, 'texts': None}, [{'path': ['texts'], 'origins': ['student']}])
        >>> stored.tensors["0/token_ids"]
        tensor([5, 6, 2], dtype=torch.int32)
        >>> restore(stored)["texts"][0].response_ids
        (6, 2)
    """

    tensors: Mapping[str, torch.Tensor]
    values: Json
    entries: Sequence[Json]


def store(state: Mapping[str, StateValue]) -> StoredState:
    """Convert the state of a policy to tensors and JSON.

    A tuple of n sequences with N tokens in total becomes five tensors:

    - token_ids (int32, [N]) and supervised (bool, [N]) concatenate the sequences.
    - ends (int64, [n]) contains for each sequence the index after its last token, in [1, N].
    - sample (int64, [n]) contains the indices of the training examples.
    - origin (uint8, [n]) contains indices of the list "origins" in `StoredState`.

    If any target has a weight other than 1, there is a sixth tensor, weights (float64), with the weights of
    all targets in order.

    Raises:
        ConfigError: a sequence has spans or a roll-out, which are not stored.
    """
    found: list[tuple[Path, torch.Tensor | tuple[TokenSequence, ...]]] = []
    values = _split(state, (), found)
    tensors: dict[str, torch.Tensor] = {}
    entries: list[Json] = []
    for number, (path, value) in enumerate(found):
        entry: dict[str, Json] = {"path": list(path)}
        if isinstance(value, torch.Tensor):
            parts = {"tensor": value}
        else:
            origins = sorted({sequence.origin for sequence in value})
            entry["origins"], parts = origins, _tensors_of(value, origins)
        tensors |= {f"{number}/{name}": part for name, part in parts.items()}
        entries.append(entry)
    return StoredState(tensors=tensors, values=values, entries=entries)


def restore(stored: StoredState) -> Mapping[str, StateValue]:
    """Restore the state that `store` converted.

    Tuples become lists, except tuples of `TokenSequence`.  Tensors are copied, since those of a checkpoint are memory-mapped.
    """
    found: dict[Path, StateValue] = {}
    for number, entry in enumerate(cast("Sequence[Mapping[str, Sequence[str]]]", stored.entries)):
        parts = {name: part for name, part in stored.tensors.items() if name.startswith(f"{number}/")}
        is_tensor = "origins" not in entry
        found[tuple(entry["path"])] = (
            parts[f"{number}/tensor"].clone() if is_tensor else _sequences_of(parts, f"{number}/", entry["origins"])
        )
    return cast("Mapping[str, StateValue]", _joined(stored.values, (), found))


def _split(value: StateValue, path: Path, found: list[tuple[Path, torch.Tensor | tuple[TokenSequence, ...]]]) -> Json:
    """Return `value` as JSON, with None for tensors and tuples of sequences.

    These tensors and tuples are appended to `found`, with their positions in the state.
    """
    if isinstance(value, torch.Tensor) or _are_sequences(value):
        found.append((path, value))
        return None
    if isinstance(value, Mapping):
        return {name: _split(held, (*path, name), found) for name, held in value.items()}
    if isinstance(value, list | tuple):
        return [_split(held, (*path, index), found) for index, held in enumerate(value)]
    return cast("Json", value)


def _joined(value: Json, path: Path, found: Mapping[Path, StateValue]) -> StateValue:
    """Return a copy of `value` that contains the values of `found` instead of None.

    The keys of `found` are the positions of these values in the whole state, and `path` is the position of `value` in it.
    """
    if path in found:
        return found[path]
    if isinstance(value, Mapping):
        return {name: _joined(held, (*path, name), found) for name, held in value.items()}
    if isinstance(value, list):
        return [_joined(held, (*path, index), found) for index, held in enumerate(value)]
    return value


def _are_sequences(value: StateValue) -> TypeGuard[tuple[TokenSequence, ...]]:
    """Whether the value is a non-empty tuple of sequences."""
    return isinstance(value, tuple) and bool(value) and all(isinstance(held, TokenSequence) for held in value)


def _tensors_of(sequences: Sequence[TokenSequence], origins: Sequence[str]) -> dict[str, torch.Tensor]:
    for sequence in sequences:
        if sequence.spans or sequence.rollout is not None:
            raise ConfigError(
                f"policy: the state has spans or a roll-out in a sequence of training example {sequence.sample}; neither can "
                "be stored; set `spans` to () and `rollout` to None by dataclasses.replace, and store their values as tensors"
            )
    tokens = np.fromiter(chain.from_iterable(sequence.token_ids for sequence in sequences), np.int32)
    supervised = np.fromiter(chain.from_iterable(sequence.supervised for sequence in sequences), np.bool_)
    weights: dict[str, torch.Tensor] = {}
    if any(weight != 1 for sequence in sequences for weight in sequence.weights):
        weights = {"weights": torch.tensor([w for sequence in sequences for w in sequence.target_weights], dtype=torch.float64)}
    return weights | {
        "sample": torch.tensor([sequence.sample for sequence in sequences]),
        "ends": torch.tensor(list(accumulate(len(sequence.token_ids) for sequence in sequences))),
        "origin": torch.tensor([origins.index(sequence.origin) for sequence in sequences], dtype=torch.uint8),
        "token_ids": torch.from_numpy(tokens),
        "supervised": torch.from_numpy(supervised),
    }


def _sequences_of(tensors: Mapping[str, torch.Tensor], prefix: str, origins: Sequence[str]) -> tuple[TokenSequence, ...]:
    names = ("sample", "ends", "origin", "token_ids", "supervised")
    samples, ends, kinds, token_ids, supervised = (tensors[prefix + name].tolist() for name in names)
    bounds = pairwise((0, *ends))
    held = tensors.get(f"{prefix}weights")
    weights = iter([1.0] * sum(supervised) if held is None else held.tolist())
    return tuple(
        TokenSequence(
            sample=sample,
            token_ids=tuple(token_ids[start:end]),
            supervised=tuple(supervised[start:end]),
            origin=cast("Origin", origins[kind]),
            weights=_unless_all_one(tuple(islice(weights, sum(supervised[start:end])))),
        )
        for sample, kind, (start, end) in zip(samples, kinds, bounds, strict=True)
    )


def _unless_all_one(weights: tuple[float, ...]) -> tuple[float, ...]:
    """Return the weights of a sequence, or () if all of them are 1."""
    return weights if any(weight != 1 for weight in weights) else ()
