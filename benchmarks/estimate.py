"""The estimate of a run compared with what the run takes: peak memory and seconds of an update.

    python -m benchmarks.estimate --model models/smollm2 [--cases smollm2 gpt2 opt] [--quick]

Three runs of MGSR, three updates each: the model named with a student of eight of its layers, and two random models, built like
GPT-2 and like OPT, of some 50 million parameters.  Estimate and run have a process each.  The first update, in which kernels
are compiled, does not count.
"""

import json
import multiprocessing
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers import AutoTokenizer

from benchmarks import measuring

PAGES = Path(__file__).parents[1] / "docs"
STEPS = 3
RANDOM: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2", "n_embd": 512, "n_layer": 8, "n_head": 8, "n_positions": 512},
    "opt": {
        "model_type": "opt",
        "hidden_size": 512,
        "word_embed_proj_dim": 512,
        "ffn_dim": 2048,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "max_position_embeddings": 512,
    },
}


def case(name: str, model: str, folder: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """A run's tree; models and data that it reads are made in `folder`."""
    layers = 8
    if name in RANDOM:
        from redistill.models.initialise import fresh_model

        tokenizer, layers = AutoTokenizer.from_pretrained(model), 4
        ids = {"vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
        fresh_model({**RANDOM[name], **ids}, 1).save_pretrained(folder / "teacher")
        tokenizer.save_pretrained(folder / "teacher")
        model = str(folder / "teacher")
    words = " ".join(path.read_text() for path in sorted(PAGES.glob("*.md"))).split()
    rows = [
        {"instruction": " ".join(words[i : i + 12]), "output": " ".join(words[i + 12 : i + 140])}
        for i in range(0, 150 * 64, 150)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokens = {"prompt_tokens": 128, "response_tokens": 128}
    return {
        "name": name,
        "out": str(folder / "run"),
        "teacher": {"model": model},
        "student": {"model": "teacher", "initialise": {"layers": layers}},
        "data": {"train": [str(folder / "train.jsonl")], "validation_rows": 8, "tokens": tokens, "spans": "simple"},
        "training": {"updates": STEPS, "batch_size": 8, **changes},
        "evaluation": {"compare": []},
    }


def estimated(tree: dict[str, Any]) -> dict[str, Any]:
    """The estimate, by the processor's time where the run is."""
    from redistill.config.run import decode_run
    from redistill.estimate import estimate

    return estimate(
        decode_run(tree, "benchmark"), time.perf_counter if torch.cuda.is_available() else time.process_time
    ).as_json()


def measured(tree: dict[str, Any]) -> dict[str, Any]:
    """Peak memory and seconds of the run itself."""
    from redistill.config.run import decode_run
    from redistill.runs.run import train_student
    from redistill.training import loop as training

    run = decode_run(tree, "benchmark")
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    with mock.patch.object(training.time, "perf_counter", clock):
        train_student(run)
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    seconds = [line["seconds"] for line in lines if line["kind"] == "train"][1:]
    draws = [line["draw_seconds"] for line in lines if line["kind"] == "train"][1:]
    peak = json.loads((run.folder / "run.json").read_text())["cost"]["peak_bytes"]
    return {"peak_bytes": peak, "step": statistics.mean(seconds), "draw": statistics.mean(draws)}


def alone(work: Callable[[dict[str, Any]], dict[str, Any]], tree: dict[str, Any]) -> dict[str, Any]:
    """`work(tree)` in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1, torch.set_num_threads, (torch.get_num_threads(),)) as pool:
        return pool.apply(work, (tree,))


def main() -> None:
    chosen = measuring.arguments(
        __doc__ or "",
        model={"default": "HuggingFaceTB/SmolLM2-135M", "help": "a folder or a hub name"},
        cases={"nargs": "+", "choices": ["smollm2", *RANDOM], "default": ["smollm2", *RANDOM], "help": "these alone"},
    )
    changes: dict[str, Any] = {"batch_size": 2, "compile": "none"} if chosen.quick else {}
    results = {}
    for name in chosen.cases:
        folder = Path(tempfile.mkdtemp())
        try:
            tree = case(name, chosen.model, folder, changes)
            expected, found = alone(estimated, tree), alone(measured, tree)
        finally:
            shutil.rmtree(folder)
        results[name] = {
            "estimated": expected,
            "measured": found,
            "memory_ratio": expected["memory"]["peak_bytes"] / found["peak_bytes"],
            "time_ratio": expected["seconds"]["step"] / found["step"],
        }
        print(
            f"  {name}: memory {results[name]['memory_ratio']:.2f}, time {results[name]['time_ratio']:.2f} of what was measured"
        )
    measuring.write("estimate", results, quick=chosen.quick)


if __name__ == "__main__":
    main()
