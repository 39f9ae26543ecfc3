"""Record the numerical results of short runs, and check later versions of the package against that record.

The script runs the command line in the toy world (fp32, CPU, one thread) and reads the files of the run folders.  It imports
nothing from redistill.  The parts of the record are:

* ``teacher``: the toy teacher, which is trained with 400 updates.
* ``method-NAME``: each of the nine methods with 5 updates (``methods.yaml``), run by ``redistill sweep``.
* ``comparison``: the table ``compare.csv`` of that sweep.
* ``demo``: the complete ``redistill demo`` with 150 updates for each of its two students.
* ``lora``: MGSR with adapters, 5 updates.
* ``stages``: a teacher and a student that are fine-tuned before DistiLLM, 5 updates.
* ``two-processes``: MGSR with two processes on gloo, 5 updates.
* ``resumed``: MGSR with a replay buffer, 16 updates, once undisturbed and once stopped by SIGTERM and resumed.

Times, paths, versions, memory and hashes of settings are not recorded.  Floats are stored with all digits.

Usage::

    python -m tests.golden.record --write            # write tests/golden/record.json
    python -m tests.golden.record                    # recompute everything and print the differences
    python -m tests.golden.record --only method-kd lora --work /tmp/golden-work
"""

import argparse
import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RECORD = HERE / "record.json"
METHODS = ("sft", "kd", "seqkd", "imitkd", "gkd", "minillm", "distillm", "mgsr", "mgsr-robust")
# Keys of files.
IGNORED = frozenset({"seconds", "draw_seconds", "tokens_per_s", "latency", "peak_bytes", "settings", "teacher_hash", "pass_at"})
SHOWN_STEPS = 5  # train lines that are stored in full; of the later ones the record has the loss and a common hash
SHOWN_ROWS = 10  # a file of at most this many rows of text is stored in full
SHOWN_OF_MANY = 3  # rows of text that are stored in full of a longer file
STOP_AFTER, RESUMED_UPDATES = 4, 16
SPANS = "objective.span.nested=both"  # the default when these parts of the record were made
WAIT_S = 1800.0  # a command that takes longer is stopped

Tree = dict[str, Any]


class Failed(Exception):
    """A command did not end as it must."""


# --- commands -----------------------------------------------------------------------------------------------------------


def environment(work: Path) -> dict[str, str]:
    """Return the environment of the commands: this checkout, one thread, no accelerator, a cache inside ``work``."""
    paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    places = {"PYTHONPATH": os.pathsep.join(paths), "REDISTILL_CACHE": str(work / "cache")}
    fixed = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **places, **fixed}


def start(work: Path, name: str, arguments: Sequence[str], *, launcher: Sequence[str] = ()) -> subprocess.Popen[bytes]:
    """Start ``redistill`` with ``arguments`` in the folder ``work``; its output goes to ``logs/NAME.txt``."""
    log = work / "logs" / f"{name}.txt"
    log.parent.mkdir(exist_ok=True)
    command = [sys.executable, *launcher, "-m", "redistill", *arguments]
    with log.open("wb") as output:
        return subprocess.Popen(command, cwd=work, env=environment(work), stdout=output, stderr=subprocess.STDOUT)


def finish(process: subprocess.Popen[bytes], work: Path, name: str, expected: int = 0) -> None:
    """Wait for a command.

    Raises:
        Failed: the exit code is not ``expected``, or the command takes too long.
    """
    try:
        code = process.wait(WAIT_S)
    except BaseException:
        process.terminate()
        process.wait()
        raise
    if code != expected:
        lines = (work / "logs" / f"{name}.txt").read_text(encoding="utf-8", errors="replace").splitlines()
        raise Failed("\n".join([f"{name}: exit code {code} instead of {expected}; its last lines are:", *lines[-15:]]))


def redistill(work: Path, name: str, *arguments: str, launcher: Sequence[str] = ()) -> None:
    """Run ``redistill`` with ``arguments`` until it ends."""
    finish(start(work, name, arguments, launcher=launcher), work, name)


# --- files of run folders -----------------------------------------------------------------------------------------------


def without_ignored(value: Any) -> Any:
    """Return a JSON value without the keys in ``IGNORED``, at any depth."""
    if isinstance(value, dict):
        return {key: without_ignored(item) for key, item in value.items() if key not in IGNORED}
    return [without_ignored(item) for item in value] if isinstance(value, list) else value


def read_json(path: Path) -> Any:
    """Return the JSON value of a file."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_lines(path: Path) -> list[Tree]:
    """Return the objects of a JSON Lines file, without what is ignored."""
    return [without_ignored(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def digest(value: Any) -> str:
    """Return the SHA-256 of a JSON value, which does not depend on the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def excerpt(rows: Sequence[Tree], keys: Sequence[str] | None = None) -> Tree:
    """Return the number of rows, a hash of all of them, and the first rows, reduced to ``keys`` where these are given."""
    shown = rows[: SHOWN_ROWS if len(rows) <= SHOWN_ROWS else SHOWN_OF_MANY]
    first = [row if keys is None else {key: row[key] for key in keys if key in row} for row in shown]
    return {"count": len(rows), "sha256": digest(rows), "first": first}


def metrics_record(path: Path) -> Tree:
    """Return the lines of ``metrics.jsonl``: all but train lines in full, the loss of each update, and a hash of all lines."""
    lines = read_lines(path)
    train = [line for line in lines if line.get("kind") == "train"]
    return {
        "sha256": digest(lines),
        "losses": [line.get("loss") for line in train],
        "train": train[:SHOWN_STEPS],
        "other": [line for line in lines if line.get("kind") != "train"],
    }


def tensors_record(path: Path) -> Tree:
    """Return type, shape and the SHA-256 of the bytes of each tensor of a safetensors file, by name."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + size]), memoryview(content)[8 + size :]
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        found[name] = f"{entry['dtype']} {entry['shape']} {hashlib.sha256(data[begin:end]).hexdigest()}"
    return found


def evaluation_record(folder: Path) -> Tree:
    """Return the scores and answers of an evaluation folder."""
    keys = ("id", "response", "rouge_l", "exact_match", "tokens", "finished")
    answers = {path.stem: excerpt(read_lines(path), keys) for path in sorted((folder / "responses").glob("*.jsonl"))}
    return {"scores": without_ignored(read_json(folder / "scores.json")), "responses": answers}


def run_record(folder: Path) -> Tree:
    """Return all that is recorded of a run folder."""
    described = read_json(folder / "run.json")
    record: Tree = {"status": described["status"], "cost": without_ignored(described["cost"])}
    record["metrics"] = metrics_record(folder / "metrics.jsonl")
    for name in ("revisions", "teacher-responses"):
        if (folder / f"{name}.jsonl").is_file():
            record[name] = excerpt(read_lines(folder / f"{name}.jsonl"))
    for path in sorted((folder / "model").glob("*.safetensors")):
        record.setdefault("model", {})[path.name] = tensors_record(path)
    networks = {int(path.parent.name[5:]): path for path in folder.glob("checkpoints/step-*/clip_network.safetensors")}
    if networks:
        record["clip_network"] = tensors_record(networks[max(networks)])
    for place in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
        if (place / "scores.json").is_file():
            record.setdefault("evaluation", {})["student" if place == folder else place.name] = evaluation_record(place)
    return record


def table_record(path: Path) -> list[Tree]:
    """Return the rows of a CSV table without what is ignored."""
    with path.open(encoding="utf-8", newline="") as file:
        return [without_ignored(row) for row in csv.DictReader(file)]


# --- parts --------------------------------------------------------------------------------------------------------------


def run_part(work: Path, name: str, *overrides: str, launcher: Sequence[str] = ()) -> Tree:
    """Run ``toy.yaml`` with ``overrides`` and return its record."""
    redistill(work, name, "run", str(HERE / "toy.yaml"), SPANS, *overrides, "--out", name, launcher=launcher)
    return run_record(work / name)


def demo_part(work: Path) -> Tree:
    """Run the demo and return the records of its two students; MGSR's is run again with the spans of the record."""
    redistill(work, "demo", "demo", "--out", "demo")
    redistill(work, "demo-mgsr", "run", str(work / "demo" / "mgsr" / "run.json"), SPANS, "--out", "demo-mgsr")
    return {"sft": run_record(work / "demo" / "sft"), "mgsr": run_record(work / "demo-mgsr")}


def lora_part(work: Path) -> Tree:
    """Run MGSR with adapters in the student."""
    return run_part(work, "lora", "student.lora={rank: 4, alpha: 16.0}")


def stages_part(work: Path) -> Tree:
    """Run DistiLLM after the teacher and the student are fine-tuned."""
    tuned = [f"{model}.finetune={{updates: 3, learning_rate: 1.0e-3}}" for model in ("teacher", "student")]
    run = run_part(work, "stages", "method=distillm", "policy.threshold=0.5", "policy.capacity=16", *tuned)
    return {"run": run, **{name: run_record(work / f"stages-{name}") for name in ("teacher", "start")}}


def two_processes_part(work: Path) -> Tree:
    """Run MGSR with two processes."""
    return run_part(work, "two-processes", launcher=("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"))


def resumed_part(work: Path) -> Tree:
    """Run MGSR with a replay buffer, and run it again with an interruption.

    The differences between the records of the two runs must be empty.

    Raises:
        Failed: the run was not stopped in the middle of its training.
    """
    policy = "policy={kind: adaptive, threshold: 0.9, capacity: 16, source: {kind: revised}}"
    overrides = (policy, f"training.updates={RESUMED_UPDATES}", "training.evaluate_every=6")
    undisturbed = run_part(work, "undisturbed", *overrides)
    name, metrics = "resumed", work / "resumed" / "metrics.jsonl"
    process = start(work, name, ("run", str(HERE / "toy.yaml"), SPANS, *overrides, "--out", name))
    while process.poll() is None and updates_in(metrics) < STOP_AFTER:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)  # nothing happens if it has ended
    finish(process, work, name, expected=128 + signal.SIGTERM)
    if not STOP_AFTER <= updates_in(metrics) < RESUMED_UPDATES:
        raise Failed(f"{name}: stopped after {updates_in(metrics)} of {RESUMED_UPDATES} updates")
    resumed = run_part(work, name, *overrides)
    return {"undisturbed": undisturbed, "differences": [path for path, _, _ in differences(undisturbed, resumed)]}


def updates_in(metrics: Path) -> int:
    """Return how many updates are logged so far."""
    return metrics.read_text(encoding="utf-8").count('"kind": "train"') if metrics.is_file() else 0


OTHERS: dict[str, Callable[[Path], Tree]] = {
    "demo": demo_part,
    "lora": lora_part,
    "stages": stages_part,
    "two-processes": two_processes_part,
    "resumed": resumed_part,
}
PARTS = ("teacher", *(f"method-{method}" for method in METHODS), "comparison", *OTHERS)


def compute(work: Path, parts: Sequence[str]) -> Tree:
    """Run the commands of ``parts`` in the empty folder ``work`` and return their records.

    The sweep also makes the toy world, which all other parts use.
    """
    shutil.copy(HERE / "corpus.txt", work)
    wanted = METHODS if "comparison" in parts else [method for method in METHODS if f"method-{method}" in parts] or ["sft"]
    only = [word for method in wanted for word in ("--only", method)]
    with timed("sweep"):
        redistill(work, "sweep", "sweep", str(HERE / "methods.yaml"), *only, "--jobs", "1", "--out", "sweep")
    (world,) = (work / "cache").glob("toy-*")
    (work / "world").symlink_to(world)
    record: Tree = {}
    for part in parts:
        if part == "teacher":
            data = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in world.glob("*.jsonl")}
            record[part] = {"data": data, **run_record(world / "teacher")}
        elif part == "comparison":
            record[part] = table_record(work / "sweep" / "compare.csv")
        elif part in OTHERS:
            with timed(part):
                record[part] = OTHERS[part](work)
        else:
            record[part] = run_record(work / "sweep" / f"{part.removeprefix('method-')}-seed10")
    return json.loads(json.dumps(record))


# --- comparison ---------------------------------------------------------------------------------------------------------


def differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield the path, the old and the new value of each difference between two JSON values; "absent" stands for no value."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from differences(old.get(key, "absent"), new.get(key, "absent"), f"{path}/{key}")
    elif isinstance(old, list) and isinstance(new, list):
        for index, (was, now) in enumerate(zip_longest(old, new, fillvalue="absent")):
            yield from differences(was, now, f"{path}/{index}")
    elif old != new:
        yield path, old, new


def facts() -> dict[str, str]:
    """Return what the bits of the results may depend on besides the code."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if sys.platform == "linux" else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    packages = ("torch", "transformers", "tokenizers", "peft", "numpy", "spacy")
    return {
        **{package: version(package) for package in packages},
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu": names[0] if names else "unknown",
    }


def check(old: Tree, record: Tree) -> int:
    """Print every difference of ``record`` to the parts of ``old``; return how many there are."""
    for name, was, now in differences(old["facts"], facts()):
        print(f"warning: {name[1:]} was {was} and is {now}; bits of floating-point results may differ for that reason alone")
    count = 0
    for part, tree in record.items():
        found = list(differences(old["parts"].get(part, "absent"), tree, part))
        count += len(found)
        for path, was, now in found:
            print(f"{path}: {short(was)} -> {short(now)}")
        print(f"{part}: {len(found) or 'no'} differences")
    return count


def short(value: Any) -> str:
    """Return a value as JSON, cut to 100 characters."""
    text = json.dumps(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def write(record: Tree) -> None:
    """Write the record; parts that were not computed are kept.

    Raises:
        Failed: the parts to keep were computed with other packages or on another machine.
    """
    kept = {} if set(record) == set(PARTS) or not RECORD.is_file() else read_json(RECORD)
    if kept and kept["facts"] != facts():
        raise Failed("the record comes from another machine or other packages; write all parts, without --only")
    tree = {"facts": facts(), "parts": {**kept.get("parts", {}), **record}}
    RECORD.write_text(json.dumps(tree, sort_keys=True, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{RECORD}: {RECORD.stat().st_size / 1000:.0f} kB")


@contextmanager
def timed(name: str) -> Iterator[None]:
    """Print how long the block takes."""
    started = time.monotonic()
    yield
    print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)


@contextmanager
def work_folder(path: Path | None) -> Iterator[Path]:
    """Give an empty folder, which is kept if ``path`` names it and removed otherwise.

    Raises:
        Failed: the folder is not empty; finished runs in it would not be computed again.
    """
    if path is None:
        with tempfile.TemporaryDirectory(prefix="golden-") as name:
            yield Path(name)
        return
    path.mkdir(parents=True, exist_ok=True)
    if any(path.iterdir()):
        raise Failed(f"{path}: is not empty; name a new folder")
    yield path.resolve()


def main() -> int:
    """Write or check the record; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.golden.record", description="Write or check tests/golden/record.json."
    )
    parser.add_argument("--write", action="store_true", help="write the record instead of checking it")
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=f"only these parts: {', '.join(PARTS)}")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep the run folders in this new or empty folder")
    options = parser.parse_args()
    try:
        with work_folder(options.work) as work, timed("all"):
            record = compute(work, [part for part in PARTS if part in (options.only or PARTS)])
        if options.write:
            write(record)
            return 0
    except Failed as error:
        print(error, file=sys.stderr)
        return 1
    return int(check(read_json(RECORD), record) > 0)


if __name__ == "__main__":
    sys.exit(main())
