"""The store of a cached teacher.

The store has the teacher's head and last hidden states, or the teacher's distributions in a compact form.  The product of
head and hidden states is the teacher's logits, so the logits of all targets of a data set are exact.  In a 16-bit dtype,
the state of a target needs 2 x width bytes; its logits in float32 would need 4 x vocabulary bytes.  `forms` describes the
compact forms, which need no head.

The folder contains these files:

- `head.safetensors`, the head;
- `states-00000.safetensors` and so on, the shards, each with the rows of some sequences;
- `texts.jsonl`, if the teacher has generated text;
- `manifest.json`, which describes the store and has the SHA-256 of each file above;
- `manifest.sha256`, the SHA-256 of the manifest.

This module reads a complete store; `filling` writes it.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

import numpy as np
import torch
from safetensors import SafetensorError

from redistill.contracts import Batch, Generation, GenerationRequest, Sampling
from redistill.errors import ConfigError, DataError, ModelError
from redistill.records import Json
from redistill.storage import files
from redistill.storage.file_hash import file_hash
from redistill.storage.tensors import read_tensors
from redistill.teachers.forms import Form, Full, described, form_from
from redistill.vocab_pass.head import Head

SCHEMA = 2
HEAD, TEXTS = "head.safetensors", "texts.jsonl"
MANIFEST, MANIFEST_HASH = "manifest.json", "manifest.sha256"
FILLING = "filling.jsonl"
"""Name of the file that lists the finished files of an incomplete store."""
KEY_BYTES = 16
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHOWN_CHARACTERS = 20  # longer values, which are hashes, are not shown in error messages
_AGAIN = "remove the folder, and run `redistill cache-teacher` again"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Numbers that describe a store.

    Args:
        sequences: Number of different sequences.
        targets: Number of rows: the targets of all sequences.
        shards: Number of shards.
        form: The form of the rows (`forms.described`).
        classes: Number of classes of the stored head; for a compact form, the number of classes that student and teacher share.
        width: Width of the teacher.
        dtype: dtype of the states: "float32", "bfloat16" or "float16".  Compact forms are computed from states that are not
            rounded to this dtype.
        scale, softcap: Factor and bound of the logits; see `vocab_pass.head.Head`.
    """

    sequences: int
    targets: int
    shards: int
    form: Mapping[str, Json]
    classes: int
    width: int
    dtype: str
    scale: float
    softcap: float | None

    @property
    def state_bytes(self) -> int:
        """Size of all rows and keys in bytes, without the headers of files.

        For sampled classes, it is the largest possible size.
        """
        row = form_from(self.form).row_bytes(self.width * DTYPES[self.dtype].itemsize)
        return self.targets * row + self.sequences * (KEY_BYTES + torch.int64.itemsize)


def shard_name(number: int) -> str:
    """Return the file name of the shard with this number, from 0."""
    return f"states-{number:05}.safetensors"


def sequence_key(token_ids: Sequence[int] | np.ndarray, supervised: Sequence[bool] | np.ndarray) -> bytes:
    """Return the key of a sequence: a hash of its token ids and targets.

    The index of an example would not be a key, since it is not unique: the indices of the training data and of the
    validation data both begin at 0.

    Args:
        token_ids: The T token ids of the sequence, without padding.
        supervised: For each position, whether the token is a target.

    Returns:
        16 bytes.

    Example:
        >>> sequence_key((5, 7), (False, True)) == sequence_key((5, 7), (True, True))
        False
    """
    found = hashlib.blake2b(np.asarray(token_ids, dtype="<i8").tobytes(), digest_size=KEY_BYTES)
    found.update(np.asarray(supervised, dtype=np.uint8).tobytes())
    return found.digest()


def batch_keys(batch: Batch) -> list[bytes]:
    """Return the keys of the sampled sequences of a batch, in order.

    Sampled sequences are the sequences on which student and teacher are compared.  `sequence_key` defines their keys.
    """
    count, num_tokens = batch.num_sampled, batch.input_ids_BT.shape[1]
    ids_BT, lengths = batch.input_ids_BT[:count].cpu().numpy(), batch.attention_mask_BT[:count].sum(dim=1).tolist()
    supervised_BT = np.zeros((count, num_tokens), dtype=np.uint8)
    # The row at a position predicts the next token, which is the target.
    supervised_BT.reshape(-1)[batch.position_N[: batch.num_sampled_rows].cpu().numpy() + 1] = 1
    return [sequence_key(ids_BT[b, :length], supervised_BT[b, :length]) for b, length in enumerate(lengths)]


def rounded(hidden_NE: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return hidden states, rounded to the dtype in which they are stored.

    Args:
        hidden_NE: Hidden states of N rows.
        dtype: dtype of the store.

    Raises:
        ModelError: a finite state is not finite in `dtype`.
    """
    stored_NE = hidden_NE.to(dtype)
    if bool((hidden_NE.isfinite() & ~stored_NE.isfinite()).any()):
        largest = float(hidden_NE.abs().nan_to_num().max())
        name = str(dtype).removeprefix("torch.")
        raise ModelError(f"teacher.cache_dtype = {name!r}: a hidden state of {largest:.3g} exceeds its range; use bfloat16")
    return stored_NE


def text_key(request: GenerationRequest, sampling: Sampling) -> str:
    """Return the key of a generated text: a hash of request and sampling.

    Fields that have their default are left out, so that a new field with a default changes no key.
    """
    asked = json.dumps([_not_default(request), _not_default(sampling)], sort_keys=True)
    return hashlib.blake2b(asked.encode(), digest_size=KEY_BYTES).hexdigest()


def _not_default(node: GenerationRequest | Sampling) -> dict[str, object]:
    return {each.name: value for each in fields(node) if (value := getattr(node, each.name)) != each.default}


class TeacherStore:
    """A complete store, whose tensors are memory-mapped.

    Several processes can read one store.  Create an instance with `TeacherStore.open`.

    Args:
        folder: The folder of the store, for messages.
        source: Everything that the rows depend on, by name: hashes of the teacher and of the data, and settings.
        layout: Numbers that describe the store.
        head: The head of the teacher, whose weights are memory-mapped; None for a compact form.
        shards: The tensors of each shard, by name.  `key_SK` has the key of each sequence (uint8), and `end_S` the index
            after the last row of each sequence.  All others, such as the states `hidden_NE`, depend on the form.
        texts: Generated texts by `text_key`.
        digest: SHA-256 of the manifest, which identifies the store.
    """

    def __init__(
        self,
        folder: Path,
        *,
        source: Mapping[str, Json],
        layout: Layout,
        head: Head | None,
        shards: Sequence[Mapping[str, torch.Tensor]],
        texts: Mapping[str, Generation],
        digest: str,
    ) -> None:
        self.folder, self.source, self.layout, self.head, self.digest = folder, source, layout, head, digest
        self.form: Form = form_from(layout.form)
        self._texts, self._shards = texts, shards
        keys = np.concatenate([shard["key_SK"].numpy() for shard in shards])
        # The first half of each key is sorted, and the second half is compared: a dict would need 200 bytes per sequence.
        self._keys = keys.view("<u8")
        self._order = np.argsort(self._keys[:, 0], kind="stable")
        self._first_halves = self._keys[self._order, 0]
        counts = [len(shard["end_S"]) for shard in shards]
        self._shard = np.repeat(np.arange(len(shards), dtype=np.int32), counts)
        self._stop = np.concatenate([shard["end_S"].numpy() for shard in shards])
        self._start = np.concatenate([np.append(0, shard["end_S"].numpy()[:-1]) for shard in shards])

    @classmethod
    def open(cls, folder: Path, *, report: Callable[[str], None], poll: Callable[[], None] = lambda: None) -> Self:
        """Open a store, and compare each file with its hash.

        Args:
            folder: The folder of the store.
            report: Function that is called with one line if a cached hash of a file is damaged or cannot be written.
            poll: Function that is called repeatedly while another process computes a hash; it may raise an exception.

        Raises:
            ConfigError: the folder contains no store, or an incomplete one.
            DataError: a file is missing or damaged; the message names the file.
        """
        digest = _checked_digest(folder)
        manifest = files.read_json(folder / MANIFEST)
        if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
            raise ConfigError(f"{folder / MANIFEST}: must have schema {SCHEMA}; {_AGAIN}")
        try:
            listed, layout = manifest["files"], Layout(**manifest["layout"])
            shard_names, is_full = [shard_name(number) for number in range(layout.shards)], layout.form == described(Full())
            for name in [*([HEAD] if is_full else []), *shard_names, *([TEXTS] if TEXTS in listed else [])]:
                if file_hash(folder / name, report, poll) != listed[name]:
                    raise DataError(f"{folder / name}: does not match its hash in {MANIFEST}; {_AGAIN}")
            weights = read_tensors(folder / HEAD) if is_full else {}
            lines = files.read_lines(folder / TEXTS) if TEXTS in listed else []
            return cls(
                folder,
                source=manifest["source"],
                layout=layout,
                head=Head(weights["weight_VD"], weights.get("bias_V"), layout.softcap, layout.scale) if is_full else None,
                shards=[read_tensors(folder / name) for name in shard_names],
                texts={
                    line["key"]: Generation(token_ids=tuple(line["token_ids"]), finished=line["finished"]) for line in lines
                },
                digest=digest,
            )
        except OSError as error:
            raise DataError(f"{folder}: {error.filename or 'a file'} cannot be read ({error.strerror}); {_AGAIN}") from error
        except (SafetensorError, LookupError, TypeError, AttributeError) as error:
            raise DataError(f"{folder}: is not a cached teacher of this version ({error}); {_AGAIN}") from error

    def rows(self, key: bytes) -> dict[str, torch.Tensor] | None:
        """Return the stored tensors of the targets of a sequence, by name.

        Args:
            key: The result of `sequence_key`.

        Returns:
            Memory-mapped tensors of the store's form; with hidden states, `hidden_NE` in the stored dtype.  None if the
            sequence is not stored.
        """
        first, second = np.frombuffer(key, dtype="<u8")
        begin, end = np.searchsorted(self._first_halves, first, "left"), np.searchsorted(self._first_halves, first, "right")
        for index in self._order[begin:end]:
            if self._keys[index, 1] == second:
                shard, rows = self._shards[int(self._shard[index])], slice(int(self._start[index]), int(self._stop[index]))
                return self.form.rows(shard, rows)
        return None

    def text(self, request: GenerationRequest, sampling: Sampling) -> Generation | None:
        """Return the teacher's stored answer to a request; None if it is not stored."""
        return self._texts.get(text_key(request, sampling))

    def check(self, expected: Mapping[str, Json]) -> None:
        """Check that the store was made from the teacher, data and settings of a run.

        Args:
            expected: Everything that the rows of the run depend on, by the names of `source`.  Other names in `source` are
                not compared.

        Raises:
            ConfigError: a value differs; the message names all that differ.
        """
        check_source(self.folder, self.source, expected, expected)


def check_source(
    folder: Path, held: Mapping[str, Json], expected: Mapping[str, Json], names: Sequence[str] | Mapping[str, Json]
) -> None:
    """Check that a store was made from the teacher, data and settings of a recipe.

    Args:
        folder: The folder of the store, for the error message.
        held: Everything that the rows of the store depend on, by name.
        expected: The same for the recipe.
        names: The names to compare.

    Raises:
        ConfigError: a value differs; the message names all that differ.
    """
    if different := [name for name in names if held.get(name) != expected.get(name)]:
        short = [name for name in different if all(len(str(each.get(name))) <= SHOWN_CHARACTERS for each in (held, expected))]
        values = {name: f" (cached teacher: {held.get(name)}, recipe: {expected.get(name)})" for name in short}
        shown = [name + values.get(name, "") for name in different]
        raise ConfigError(
            f"{folder}: the cached teacher was made with another {', another '.join(shown)} than this recipe has; choose "
            "another folder, or remove this folder to make the cached teacher again"
        )


def is_complete(folder: Path) -> bool:
    """Return whether a folder contains a complete store; its files are not checked."""
    return (folder / MANIFEST_HASH).exists() and not (folder / FILLING).exists()


def _checked_digest(folder: Path) -> str:
    """Compare the SHA-256 of a store's manifest with the stored one, and return it.

    Raises:
        ConfigError: the folder contains no complete store.
        DataError: the manifest is missing or damaged.
    """
    if not is_complete(folder):
        what = "an incomplete cached teacher" if (folder / FILLING).exists() else "no cached teacher"
        raise ConfigError(f"{folder}: contains {what}; run `redistill cache-teacher RECIPE --out {folder}`")
    try:
        digest, held = files.digest(folder / MANIFEST), (folder / MANIFEST_HASH).read_bytes()
    except OSError as error:
        raise DataError(f"{folder}: {MANIFEST} cannot be read ({error.strerror}); {_AGAIN}") from error
    if held != f"{digest}\n".encode():
        raise DataError(f"{folder / MANIFEST}: does not match its hash in {MANIFEST_HASH}; {_AGAIN}")
    return digest
