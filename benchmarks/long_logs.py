"""Time and memory of reports, comparisons and resumes of runs with many updates.

    python -m benchmarks.long_logs --updates 1000000

The logs are synthetic: each line has the keys that a run of MGSR logs, with random numbers.  There is a validation every 1,000
updates, an event every 5,000, and two corrections in revisions.jsonl every 10.  Each figure is that of a process of its own.
"without reading" truncates the logs as a run does that resumes from a checkpoint 1,000 updates before the end; "by a scan"
truncates those of a checkpoint that has no sizes of the logs.
"""

import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import measuring
from redistill.storage import files

SINCE_CHECKPOINT = 1000
QUANTITIES = (
    *("loss", "sft", "divergence", "span", "kept_mass", "kept_classes", "upper", "lower", "target_only"),
    *("grad_norm", "clip_network_grad_norm", "learning_rate", "clip_network_learning_rate"),
    *("tokens_per_s", "seconds", "draw_seconds", "response_length", "ended", "distinct_2"),
)
SCORES = ("rouge_l", "cross_entropy", "kl", "agreement", "length_tokens", "eos_rate", "distinct_1", "distinct_2")


def main() -> None:
    options = measuring.arguments(
        __doc__ or "",
        updates={"type": int, "default": 1_000_000},
        keep={"type": Path, "help": "write the runs to this folder and keep them, to measure commands by other means"},
        work={"choices": sorted(WORK), "help": "internal: what a process measures"},
        folder={"type": Path, "help": "internal: the folder of the runs"},
    )
    if options.work:
        print(json.dumps(measured(WORK[options.work], options.folder)))
        return
    updates = 5000 if options.quick else options.updates
    if options.keep:
        write_runs(options.keep, updates)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_runs(folder, updates)
        sizes = {path.name: path.stat().st_size for path in sorted((folder / "a").glob("*.jsonl"))}
        found = {}
        for what, work in (("report", "report"), ("compare of two", "compare")):
            found[what] = started(work, folder)
        for what, work in (("resume, without reading", "by_size"), ("resume, by a scan", "by_scan")):
            shutil.copytree(folder / "a", folder / "resumed")
            found[what] = started(work, folder)
            shutil.rmtree(folder / "resumed")
    measuring.write("long_logs", {"updates": updates, "bytes": sizes, **found}, quick=options.quick)


def write_runs(folder: Path, updates: int) -> None:
    """Write two finished runs: run.json, evaluations, and logs of `updates` updates."""
    from tests.reports.fabricated import write_run

    for name in ("a", "b"):
        write_run(folder / name, name)
    with (folder / "a" / "metrics.jsonl").open("w") as file:
        file.writelines(json.dumps(line) + "\n" for line in metrics(updates))
    with (folder / "a" / "revisions.jsonl").open("w") as file:
        file.writelines(json.dumps(line) + "\n" for line in revisions(updates))
    for log in ("metrics.jsonl", "revisions.jsonl"):
        shutil.copyfile(folder / "a" / log, folder / "b" / log)
    described = files.read_json(folder / "b" / "run.json")
    files.write_json(folder / "b" / "run.json", {**described, "method": "sft"})


def metrics(updates: int) -> Iterator[Mapping[str, Any]]:
    """The lines of metrics.jsonl."""
    chance = random.Random(updates)
    for step in range(1, updates + 1):
        line: dict[str, Any] = {"kind": "train", "step": step, **{name: 3 * chance.random() for name in QUANTITIES}}
        revised = chance.randrange(9)
        line["origin"] = {"dataset": 4, "replay": 8 - revised, "revised": revised, "student": 4}
        line["policy"] = {"threshold": 0.3, "buffered": 1000}
        yield line
        if step % 1000 == 0:
            yield {"kind": "validation", "step": step, **{name: chance.random() for name in SCORES}}
        if step % 5000 == 0:
            text = f"step {step}: loss {100 * chance.random():.4g} is 9.1 times the median of recent losses; samples 1, 2, 3"
            yield {"kind": "event", "step": step, "event": "loss_spike", "text": text, "loss": 100.0, "samples": [1, 2, 3]}


def revisions(updates: int) -> Iterator[Mapping[str, Any]]:
    """The lines of revisions.jsonl, with texts of a few sentences."""
    text = "The owl walks in the garden every morning, and the fox hides in the old mill. "
    for step in range(1, updates + 1, 10):
        for sample in (step % 997, step % 991):
            line = {"step": step, "sample": sample, "position": 17, "kl": 1.25, "prompt": text * 4, "kept": text}
            yield line | {"student_token": " owl", "teacher_token": " fox", "student_tail": text * 2, "new_tail": text * 2}


# --- what is measured ---------------------------------------------------------------------------------------------------


def report(folder: Path) -> Callable[[], object]:
    from redistill.reports.report import build_report

    return lambda: build_report(folder / "a")


def compare(folder: Path) -> Callable[[], object]:
    from redistill.reports.compare import build_comparison

    return lambda: build_comparison([folder / "a", folder / "b"], [folder / "compare.html"])


def by_size(folder: Path) -> Callable[[], object]:
    logs = resumed_logs(folder)

    def truncate() -> None:
        for log in logs:
            size, step = cut(log.path)
            log.truncate_after(step, size)

    return truncate


def by_scan(folder: Path) -> Callable[[], object]:
    logs = resumed_logs(folder)

    def truncate() -> None:
        for log in logs:
            log.truncate_after(cut(log.path)[1])

    return truncate


def resumed_logs(folder: Path) -> list[Any]:
    """The logs of the run that resumes, of the class that the training loop uses."""
    from redistill.training.metrics import MetricsLog

    return [MetricsLog(folder / "resumed" / name) for name in ("metrics.jsonl", "revisions.jsonl")]


def cut(path: Path) -> tuple[int, int]:
    """Size of a log after the update `SINCE_CHECKPOINT` updates before its end, and the number of this update."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4_000_000))
        tail = file.read().split(b"\n")[1:-1]
    last = json.loads(tail[-1])["step"] - SINCE_CHECKPOINT
    later = [line for line in tail if json.loads(line)["step"] > last]
    return path.stat().st_size - sum(len(line) + 1 for line in later), last


WORK = {work.__name__: work for work in (report, compare, by_size, by_scan)}


def started(work: str, folder: Path) -> dict[str, float]:
    """The figures of one piece of work, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.long_logs", "--work", work, "--folder", str(folder)]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"  {work}: {found}", flush=True)
    return found


def measured(work: Callable[[Path], Callable[[], object]], folder: Path) -> dict[str, float]:
    """Seconds of the work without imports, and the peak memory of this process with them, torch included."""
    prepared = work(folder)
    began, used = time.perf_counter(), time.process_time()
    prepared()
    seconds, cpu = time.perf_counter() - began, time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": round(seconds, 2), "cpu_s": round(cpu, 2), "peak_mb": round(peak / 1e6)}


if __name__ == "__main__":
    main()
