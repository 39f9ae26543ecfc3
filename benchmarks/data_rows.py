"""Processor time and memory from the start of a run to its first update, by the number of rows.

    python -m benchmarks.data_rows --rows 100000 --form messages --tokenizer llama

Each start is a process of its own, with an empty cache and then with the cache of the start before it.  The models are tiny, so
that what is measured is imports, reading, tokenization, and everything else that depends on the number of rows.  Memory is the
peak of the process above that of the same start with 1,000 rows.
"""

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import measuring

ANIMALS, PLACES = ("cat", "dog", "owl", "fox", "hen", "cow"), ("barn", "garden", "quiet street", "old mill")
VERBS, TIMES = ("sleeps", "walks", "waits", "hides", "plays"), ("at night", "every morning", "in 12 days", "seldom", "often")


def main() -> None:
    options = measuring.arguments(
        __doc__ or "",
        rows={"type": int, "default": 100_000},
        form={"choices": ["instructions", "messages"], "default": "instructions", "help": "messages have a chat template"},
        tokenizer={"choices": ["gpt2", "llama"], "default": "gpt2", "help": "gpt2: byte-level BPE; llama: Llama 2"},
        start={"help": "internal: the folder of a start"},
    )
    if options.start:
        print(json.dumps(start(Path(options.start), options.form, options.tokenizer)))
        return
    rows = 2000 if options.quick else options.rows
    kind = ["--form", options.form, "--tokenizer", options.tokenizer]
    with tempfile.TemporaryDirectory() as work:
        few, many = (prepare(Path(work) / str(count), count, options.form) for count in (1000, rows))
        results = {
            "1,000 rows": started(few, Path(work), kind),
            f"{rows:,} rows, {(many / 'train.jsonl').stat().st_size / 1e6:.0f} MB": started(many, Path(work), kind),
            "the same, second start": started(many, Path(work), kind),
        }
    usual = (options.form, options.tokenizer) == ("instructions", "gpt2")
    measuring.write("data_rows", results, quick=options.quick, variant="" if usual else f"{options.form}_{options.tokenizer}")


def prepare(folder: Path, count: int, form: str) -> Path:
    """Rows of about 250 bytes, as instructions or as messages."""
    folder.mkdir()
    chance = random.Random(count)

    def sentences(count: int) -> str:
        picked = ([chance.choice(words) for words in (ANIMALS, VERBS, PLACES, TIMES)] for _ in range(count))
        return " ".join(f"The {animal} {verb} in the {place} {time}." for animal, verb, place, time in picked)

    with (folder / "train.jsonl").open("w") as file:
        for number in range(count):
            question, answer = f"{sentences(2)} What is said of it ({number})?", sentences(2)
            row: dict[str, Any] = {"instruction": question, "input": "", "output": answer}
            if form == "messages":
                row = {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
            file.write(json.dumps(row) + "\n")
    return folder


def started(folder: Path, work: Path, kind: list[str]) -> dict[str, Any]:
    """The figures of one start, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.data_rows", "--start", str(folder), *kind]
    environment = {**os.environ, "REDISTILL_CACHE": str(work / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"  {folder.name} rows: {found}", flush=True)
    return found


def start(folder: Path, form: str, tokenizer: str) -> dict[str, float]:
    """Train one update in a new run folder; returns processor seconds and peak memory of this process."""
    from redistill.runs.run import train_student
    from tests.tokenizers import CHATML, metaspace_like
    from tests.worlds import LLAMA, gpt2_tokenizer, tiny_run, write_model

    world = folder / "world"
    world.mkdir(exist_ok=True)
    out = f"run-{len(list(world.glob('run-*')))}"
    changes = {"train": [str(folder / "train.jsonl")], "validation": None, "validation_rows": 4, "tests": {}}
    changes["tokens"] = {
        "prompt_tokens": 128,
        "response_tokens": 64,
        "template": "chat" if form == "messages" else "alpaca",
    }
    training = {"updates": 1, "batch_size": 4, "log_every": 1}
    write_model(world / "student", LLAMA, 2, vocab_size=1024)
    made = gpt2_tokenizer() if tokenizer == "gpt2" else metaspace_like("first")
    if form == "messages":
        made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
        made.chat_template = CHATML
    made.save_pretrained(world / "student")
    train_student(tiny_run(world, "sft", out=out, teacher=None, data=changes, training=training))
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    seconds = sum(usage.ru_utime + usage.ru_stime for usage in used)
    return {"cpu_s": round(seconds, 1), "peak_gb": round(used[0].ru_maxrss * 1024 / 1e9, 3)}


if __name__ == "__main__":
    main()
