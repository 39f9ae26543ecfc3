"""Filling the store of a cached teacher with the whole teacher, and with its layers read from disk one after another.

    python -m benchmarks.cache_layers --model models/smollm2 [--sequences 32] [--quick]

Both write the same rows.  "weights" is the size of the teacher's weights that are in memory at once; "peak_bytes" is that of a
process that loads the teacher and fills the store, with the states of all tokens.
"""

import gc
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks import measuring
from benchmarks.cached_teacher import examples
from benchmarks.step import Work
from redistill.config.sections import TeacherConfig
from redistill.models.layer_files import layer_files
from redistill.models.load import ModelConfig, load_model
from redistill.models.streamed import StreamedBody
from redistill.policies.order import gold_sequence
from redistill.runs.teacher_cache import reader_of
from redistill.storage import files
from redistill.teachers.filling import Plan, StoreWriter

OF_THE_PEAK = 4  # sequences


def weight_bytes() -> int:
    """Size of all parameters in memory, each once."""
    found = {each.data_ptr(): each.nbytes for each in gc.get_objects() if isinstance(each, torch.nn.Parameter)}
    return sum(size for pointer, size in found.items() if pointer)


def filled(work: Work, folder: Path, kind: str, count: int, sizes: list[int] | None = None) -> Callable[[], None]:
    """The work of loading the teacher and filling a new store with `count` sequences."""
    sequences = [gold_sequence(example) for example in examples(work)[:count]]

    def fill() -> None:
        config = TeacherConfig(model=work.model, dtype=work.teacher_dtype)
        files.make_folder(out := Path(tempfile.mkdtemp(dir=folder)) / kind)
        with layer_files(ModelConfig(model=work.model, dtype=work.teacher_dtype)) as layers:
            if kind == "streamed":
                assert layers is not None
                teacher = StreamedBody(layers, "cpu")
                teacher.release_first()
            else:
                teacher = load_model(config)[0].eval().requires_grad_(False)
            reader = reader_of(config, teacher, 1, 0, None)
            report = None if sizes is None else lambda *done: sizes.append(weight_bytes())
            StoreWriter(out, {}).states(Plan(sequences, reader.row_bytes), reader, report or (lambda *done: None))

    return fill


def content(folder: Path, kind: str) -> dict[str, str]:
    """SHA-256 of each file of the store that was filled last."""
    out = max(folder.glob(f"*/{kind}"), key=lambda path: path.stat().st_mtime)
    return {path.name: files.digest(path) for path in sorted(out.iterdir())}


def measured(work: Work, count: int, turns: int) -> Mapping[str, Any]:
    with tempfile.TemporaryDirectory() as made:
        folder, kinds = Path(made), ("whole", "streamed")
        found: dict[str, Any] = {"tokens": count * (work.prompt + work.response)}
        found["seconds"] = measuring.interleaved({kind: filled(work, folder, kind, count) for kind in kinds}, turns, warmups=0)
        found["ratios"] = measuring.ratios(found["seconds"], "whole")
        found["bitwise_equal"] = content(folder, "whole") == content(folder, "streamed")
        sizes: dict[str, list[int]] = {kind: [] for kind in kinds}
        for kind in kinds:
            filled(work, folder, kind, OF_THE_PEAK, sizes[kind])()
            gc.collect()
        weights = {kind: max(each) for kind, each in sizes.items()}
        peaks = {kind: measuring.peak_of(filled, work, folder, kind, OF_THE_PEAK) for kind in kinds}
        return found | {"weights": weights, "share": weights["streamed"] / weights["whole"], "peak_bytes": peaks}


def main() -> None:
    chosen = measuring.arguments(
        __doc__ or "",
        model={"default": "HuggingFaceTB/SmolLM2-135M", "help": "the teacher: a folder or a hub name"},
        sequences={"type": int, "default": 32, "help": "number of sequences"},
    )
    work = Work(chosen.model, "fp32", prompt=64, response=192)
    results = measured(work, 2 if chosen.quick else chosen.sequences, chosen.repetitions or (1 if chosen.quick else 3))
    measuring.write("cache_layers", results, quick=chosen.quick)


if __name__ == "__main__":
    main()
