"""How every benchmark here measures, so that their figures can be compared.

Rivals take turns in one process (`interleaved`), so that whatever else the machine does meets all of them alike; the figures
are medians, the spread between quartiles, and ratios to a named rival.  On a CPU a second is one of the process's own
processor time with one thread, on a GPU one of the clock between two synchronisations.  Memory is measured in a fresh process
for each rival (`peak_of`), above what the process held when the work began.
"""

import argparse
import ctypes
import gc
import json
import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
RIVALS = ("torch", "transformers", "trl", "liger-kernel")


def arguments(about: str, **more: Mapping[str, Any]) -> argparse.Namespace:
    """The options that all benchmarks have, and `more` of one's own (name -> arguments of add_argument)."""
    parser = argparse.ArgumentParser(description=about.strip().splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small and once: does it run at all")
    parser.add_argument("--repetitions", type=int, help="turns of each rival")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch; 1 is what the documented figures have")
    for name, settings in more.items():
        parser.add_argument(f"--{name}", **settings)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    return chosen


def seconds_of(work: Callable[[], object]) -> float:
    """Processor seconds of the work, or on a GPU seconds of the clock."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        torch.cuda.synchronize()
        return time.perf_counter() - began
    began = time.process_time()
    work()
    return time.process_time() - began


def interleaved(
    rivals: Mapping[str, Callable[[], object]], repetitions: int, *, warmups: int = 1
) -> dict[str, dict[str, float | int]]:
    """Each rival's seconds: "median", "low" and "high" quartile, "least", and how many "repetitions"."""
    for _ in range(warmups):
        for work in rivals.values():
            work()
    found: dict[str, list[float]] = {name: [] for name in rivals}
    for turn in range(repetitions):
        for name, work in rivals.items():
            found[name].append(seconds_of(work))
        print(f"  turn {turn + 1} of {repetitions}: " + ", ".join(f"{n} {s[-1]:.2f} s" for n, s in found.items()), flush=True)
    return {name: spread(seconds) for name, seconds in found.items()}


def spread(values: Sequence[float]) -> dict[str, float | int]:
    """Median, quartiles and least of what was measured."""
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
    return {
        "median": statistics.median(values),
        "low": low,
        "high": high,
        "least": min(values),
        "repetitions": len(values),
    }


def ratios(found: Mapping[str, Mapping[str, float]], to: str) -> dict[str, float]:
    """Each rival's median over the named one's."""
    return {name: each["median"] / found[to]["median"] for name, each in found.items()}


def peak_of(work: Callable[..., Callable[[], object]], *args: object) -> int:
    """Bytes that a fresh process holds at most in `work(*args)()`, above what it held once `work(*args)` had prepared it.

    `work` is a function of a module, since the fresh process imports it.  The prepared work is done once before, on nothing
    that counts, only where it does so itself: compilation, for instance, is no part of the peak if `work` has warmed it up.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(sender, torch.get_num_threads(), work, args))
    process.start()
    sender.close()
    try:
        return int(receiver.recv())
    except EOFError:
        raise SystemExit(f"{work.__name__}{args}: its process died") from None
    finally:
        process.join()


def _measure(sender: Any, threads: int, work: Callable[..., Callable[[], object]], args: tuple[object, ...]) -> None:
    torch.set_num_threads(threads)
    prepared = work(*args)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        prepared()
        sender.send(torch.cuda.max_memory_allocated() - before)
        return
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # else memory that was freed before would hide what is taken now
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = _status("VmRSS")
    prepared()
    sender.send(_status("VmHWM") - before)


def _status(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def write(name: str, results: Mapping[str, Any], *, quick: bool = False, variant: str = "") -> None:
    """Put the results with machine, versions, date and command into a file; quick ones are only printed.

    The file is results/<name>.json, or results/<name>_<variant>.json for options whose figures are kept as well.
    """
    about = {
        "command": f"python -m benchmarks.{name} {' '.join(sys.argv[1:])}".strip(),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "versions": {package: found for package in RIVALS if (found := _version(package))},
    }
    text = json.dumps({**about, "results": results}, indent=1)
    print(text)
    if not quick:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{'_'.join(filter(None, (name, variant)))}.json").write_text(text + "\n")


def machine() -> str:
    """The accelerator, or the processor and its cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    names = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return f"{len(names)} cores of {names[0] if names else platform.processor()}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
