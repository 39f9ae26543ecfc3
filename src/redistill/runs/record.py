"""Facts for run.json about where a run ran: machine, package versions, git commit.

Nothing leaves the machine, and nothing here changes what a run computes.
"""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import redistill

PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "datasets",
    "tokenizers",
    "safetensors",
    "numpy",
    "rouge-score",
    "spacy",
)


def machine() -> dict[str, Any]:
    """The machine in plain words for run.json: processor, cores, memory, accelerators, Python, platform, torch's threads."""
    return {
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None,
        "accelerators": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch_threads": torch.get_num_threads(),
    }


def versions() -> dict[str, str]:
    """Versions of redistill and of the packages whose releases can change a result; those not installed are left out."""
    found = {"redistill": redistill.__version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit(folder: Path | None = None) -> str | None:
    """The git commit checked out in `folder` (else where redistill itself is), "-dirty" behind it where tracked files differ.

    None outside a git checkout, or without git.
    """
    place = folder or Path(redistill.__file__).parent
    head = _git(place, "rev-parse", "--verify", "HEAD")
    changes = _git(place, "status", "--porcelain", "--untracked-files=no") if head else None
    return f"{head}-dirty" if changes else head


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
