"""Ways to plant code, pickles, links and fields into the folder of a model.

Each takes the folder, and a folder outside of it. Code makes the file `ran` there; a file that must not be read has `SECRET`.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.faults.invalid_models import fields, sharded

SECRET = "text-outside-of-the-model"

Plants = Callable[[Path, Path], Any]


class Ran:
    """An object whose unpickling makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def code(file: str = "mine.py") -> Plants:
    """A module whose import makes the mark."""

    def plants(folder: Path, outside: Path) -> None:
        (folder / file).parent.mkdir(exist_ok=True)
        text = (
            f"import pathlib\npathlib.Path({str(outside / 'ran')!r}).touch()\nclass C:\n    pass\ndef generate():\n    pass\n"
        )
        (folder / file).write_text(text)

    return plants


def sets(file: str, **changes: Any) -> Plants:
    """Sets fields of a JSON file, which is made if it does not exist."""

    def plants(folder: Path, outside: Path) -> None:
        text = json.dumps(changes).replace("OUTSIDE", str(outside))
        if not (folder / file).exists():
            (folder / file).write_text("{}")
        fields(file, **json.loads(text))(folder)

    return plants


def pickled(file: str) -> Plants:
    return lambda folder, outside: torch.save(Ran(outside / "ran"), folder / file)


def linked(file: str, target: str) -> Plants:
    """Replaces a file by a link to a valid one outside of the folder, which has the secret if it is text."""

    def plants(folder: Path, outside: Path) -> None:
        (folder / file).parent.mkdir(exist_ok=True)
        if (folder / file).exists():
            shutil.move(folder / file, outside / target)
        elif not (outside / target).exists():
            (outside / target).write_text(SECRET)
        (folder / file).symlink_to(outside / target)

    return plants


def placed(change: Callable[[Path, Path, dict[str, str]], Any]) -> Plants:
    """Two shards and an index, whose map of tensors to files is changed."""
    return lambda folder, outside: sharded(lambda at, index: change(at, outside, index["weight_map"]))(folder)


def elsewhere(name: str) -> Plants:
    """A shard outside of the folder, with its path in the index."""

    def change(folder: Path, outside: Path, places: dict[str, str]) -> None:
        shutil.move(folder / "model-1.safetensors", outside / "moved.safetensors")
        path = name.replace("OUTSIDE", str(outside))
        for key, file in places.items():
            places[key] = path if file == "model-1.safetensors" else file

    return placed(change)


def pickled_shard(folder: Path, outside: Path, places: dict[str, str]) -> None:
    """A shard in pickle format under the name of one; the safetensors file stays as a decoy."""
    torch.save({**load_file(folder / "model-1.safetensors"), "x": Ran(outside / "ran")}, folder / "model-1.bin")
    for key, file in places.items():
        places[key] = file.replace("model-1.safetensors", "model-1.bin")


def both(*all_of: Plants) -> Plants:
    def plants(folder: Path, outside: Path) -> None:
        for each in all_of:
            each(folder, outside)

    return plants


def without(*files: str) -> Plants:
    return lambda folder, outside: [(folder / file).unlink() for file in files]


def fifo(file: str) -> Plants:
    """A named pipe, whose opening would wait for ever."""

    def plants(folder: Path, outside: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        os.mkfifo(folder / file)

    return plants


def looped(file: str) -> Plants:
    def plants(folder: Path, outside: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        (folder / file).symlink_to(folder / file)

    return plants


def text(file: str, content: str) -> Plants:
    def plants(folder: Path, outside: Path) -> None:
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(content.replace("OUTSIDE", str(outside)))

    return plants


def foreign_blob(folder: Path, outside: Path) -> None:
    """A link of a snapshot to a cached file of another repository."""
    blob = folder.parents[2] / "models--other--name" / "blobs" / ("0" * 40)
    blob.parent.mkdir(parents=True)
    shutil.move((folder / "tokenizer.json").resolve(), blob)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to(blob)


def moved_blobs(folder: Path, outside: Path) -> None:
    """The folder of the cached files is a link to a folder outside of the cache."""
    blobs = folder.parents[1] / "blobs"
    shutil.move(blobs, outside / "blobs")
    blobs.symlink_to(outside / "blobs")


def cached_snapshot(model: Path, cache: Path, name: str) -> Path:
    """A model as the hub's client caches it: links in a snapshot to files that are named by their hash."""
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot, blobs = repository / "snapshots" / ("a" * 40), repository / "blobs"
    for folder in (snapshot, blobs, repository / "refs"):
        folder.mkdir(parents=True)
    for number, path in enumerate(sorted(model.iterdir())):
        shutil.copy(path, blobs / f"{number:040x}")
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", f"{number:040x}"))
    (repository / "refs" / "main").write_text("a" * 40)
    return snapshot


def moved_weights(folder: Path, outside: Path) -> None:
    """All weights in one file outside of the folder, which the index names."""
    save_file(load_file(folder / "model.safetensors"), outside / "moved.safetensors", {"format": "pt"})
    places = dict.fromkeys(load_file(folder / "model.safetensors"), "../outside/moved.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (folder / "model.safetensors").unlink()
