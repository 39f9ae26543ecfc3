"""Storage of hidden states for text that is generated during training.

The store of a cached teacher (`store`) has the hidden states of the training and validation data.  If the teacher model is
loaded in addition, it runs only on batches with text that is not stored.  If the policy has a replay buffer, the states of
generated text are stored as well, and are read when the text is replayed.  They are stored in shards with the format of
`store`.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from redistill.contracts import Batch, TokenSequence
from redistill.errors import DataError
from redistill.storage import files
from redistill.storage.tensors import read_tensors, write_tensors
from redistill.teachers.store import DTYPES, TeacherStore, batch_keys, rounded, sequence_key

DIGEST_CHARACTERS = 16
NOT_GENERATED = {"dataset", "corpus"}
"""Origins of text that no model has generated."""


class AppendedStates:
    """Hidden states of a store, and states that are appended during training.

    An appended state has the same bits each time it is used, even if the run was killed and resumed.  For this, all states
    of a forward pass are written to disk before any of them is used.  A written state always replaces a newly computed one.

    Args:
        store: The store with the hidden states of the training and validation data.
        folder: Folder of the states that this process appends; created when the first state is appended.
        keeps: Whether states of generated text are appended.  If False, they are computed each time.

    Raises:
        DataError: a file of the folder is damaged; the message names the file.
    """

    def __init__(self, store: TeacherStore, folder: Path, *, keeps: bool) -> None:
        self._store, self._folder, self._keeps = store, folder, keeps
        self._dtype = DTYPES[store.layout.dtype]
        self._expected = set[bytes]()
        self._appended = dict[bytes, torch.Tensor]()
        self._shards = 0
        for path in sorted(folder.glob("*.safetensors")) if folder.is_dir() else ():
            self._open(path)

    def expect(self, sequences: Sequence[TokenSequence]) -> None:
        """Set the sequences of the next batches.

        If the setting `keeps` is True, `rows` will append the states of the generated sequences among them.
        """
        generated = (each for each in sequences if each.origin not in NOT_GENERATED) if self._keeps else ()
        self._expected = {sequence_key(each.token_ids, each.supervised) for each in generated}

    def rows(self, batch: Batch, read: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return the hidden states of the rows of a batch, from storage where possible.

        Args:
            batch: The batch.
            read: Function that runs the model on the whole batch and returns the hidden states of its rows, [N, E].  It is
                called only if the states of at least one sequence are not stored.

        Returns:
            The states, [N, E], rounded to the dtype of the store.

        Raises:
            ModelError: a state exceeds the range of the dtype of the store.
            OutputError: the states cannot be written.
        """
        keys = batch_keys(batch)
        found = [self._stored(key) for key in keys]
        held = [states for states in found if states is not None]
        if len(held) == len(found) > 0:
            return torch.cat(held)
        hidden_NE = rounded(read(), self._dtype)
        # Split the rows into sequences: a sequence has one row for each target.
        lengths = torch.bincount(batch.position_N[: batch.num_sampled_rows] // batch.input_ids_BT.shape[1], minlength=len(keys))
        computed = dict(zip(keys, hidden_NE.split(lengths.tolist())))
        self._append({key: computed[key] for key in computed if key in self._expected and self._stored(key) is None})
        return torch.cat([computed[key] if states is None else states.to(hidden_NE) for key, states in zip(keys, found)])

    def _stored(self, key: bytes) -> torch.Tensor | None:
        rows = self._store.rows(key)
        return self._appended.get(key) if rows is None else rows["hidden_NE"]

    def _append(self, states: dict[bytes, torch.Tensor]) -> None:
        """Write the states of some sequences to a new shard."""
        if not states:
            return
        tensors = {
            "hidden_NE": torch.cat(list(states.values())).cpu(),
            "key_SK": torch.from_numpy(np.frombuffer(b"".join(states), dtype=np.uint8).reshape(len(states), -1).copy()),
            "end_S": torch.tensor([len(part) for part in states.values()]).cumsum(0),
        }
        files.make_folder(self._folder)
        partial = self._folder / "partial"
        digest = write_tensors(partial, tensors)
        path = self._folder / f"{self._shards:07}-{digest[:DIGEST_CHARACTERS]}.safetensors"
        try:
            files.disk.rename(partial, path)
            files.sync(self._folder)
        except OSError as error:
            raise files.write_failed(path, error) from error
        self._index(read_tensors(path))

    def _open(self, path: Path) -> None:
        """Compare a shard with the hash in its name, and add its states."""
        try:
            digest = hashlib.file_digest(path.open("rb"), "sha256").hexdigest()
        except OSError as error:
            raise DataError(
                f"{path}: cannot be read ({error.strerror}); remove this file to compute its states again"
            ) from error
        if digest[:DIGEST_CHARACTERS] != path.stem.partition("-")[2]:
            raise DataError(f"{path}: does not match the hash in its name; remove this file to compute its states again")
        self._index(read_tensors(path))

    def _index(self, shard: dict[str, torch.Tensor]) -> None:
        self._shards += 1
        ends = shard["end_S"].tolist()
        for key, start, end in zip(shard["key_SK"].numpy(), [0, *ends], ends):
            self._appended[key.tobytes()] = shard["hidden_NE"][start:end]
