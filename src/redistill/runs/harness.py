"""Scores of a model on tasks of lm-evaluation-harness.

The model is loaded by redistill, which checks its files, and is then passed to the harness.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
import yaml

from redistill.errors import ConfigError, DataError
from redistill.models.load import ModelConfig, load_model
from redistill.records import Json
from redistill.runs.folder import of_run
from redistill.storage import files
from redistill.storage.lock import locked
from redistill.storage.redaction import plain_line

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

FILE = "harness.json"
SEED = 1234


def evaluate_harness(
    model: ModelConfig,
    tasks: Sequence[str],
    out: Path,
    *,
    limit: int | None = None,
    batch_size: int = 16,
    allow_code: Sequence[str] = (),
) -> Mapping[str, Json]:
    """Score a model on tasks of lm-evaluation-harness.

    The scores are written to `harness.json` in the output folder.

    The package `lm_eval` must be installed (the extra `eval` of redistill).  It downloads the data of the tasks it defines.

    Args:
        model: The model.  If it names a run folder, the student of this run is loaded.
        tasks: For each task its name in the harness, such as "arc_easy", or the path of a task file (.yaml).
        out: The output folder.
        limit: Use only the first `limit` examples of each task; None for all.
        batch_size: Number of examples in a batch, >= 1.
        allow_code: Task files that may be used.  A task file can execute code, through its templates and functions.

    Returns:
        "results", the scores by task and metric with their standard errors; "versions" of the tasks; "num_examples" by task;
        and "lm_eval", the version of the harness.

    Raises:
        ConfigError: the package is missing, a task is unknown, or a task file cannot be read or is not in `allow_code`.
        DataError: the data of a task cannot be read.
        BusyError: another process uses `out`.
        ModelError: the model cannot be loaded.
        OutputError: the scores cannot be written.

    Example:
        >>> evaluate_harness(ModelConfig(model="runs/kd/model"), ["arc_easy"], Path("scores"))  # doctest: +SKIP
    """
    manager, names = _tasks(tasks, allow_code)
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    loaded, tokenizer = load_model(of_run(model))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    seeds = dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"), SEED)
    try:
        wrapped = HFLM(pretrained=loaded.to(device).eval(), tokenizer=tokenizer, batch_size=batch_size, device=device)
        scored = lm_eval.simple_evaluate(wrapped, tasks=names, task_manager=manager, limit=limit, log_samples=False, **seeds)
    except (OSError, ValueError, KeyError) as error:
        reason = plain_line(str(error))[:300]
        raise DataError(f"--harness {','.join(tasks)}: {reason}; check the network, or the task file and its data") from error
    found: dict[str, Json] = {
        "schema": 1,
        "results": {name: _numbers(values) for name, values in scored["results"].items()},
        "versions": dict(scored["versions"]),
        "num_examples": {name: int(each["effective"]) for name, each in scored["n-samples"].items()},
        "lm_eval": str(lm_eval.__version__),
    }
    with locked(out):
        files.write_json(out / FILE, found)
    return found


def _tasks(tasks: Sequence[str], allow_code: Sequence[str]) -> tuple["TaskManager", list[str]]:
    """Return the task manager of the harness, and the names of the tasks.

    Raises:
        ConfigError: the package is missing, a task is unknown, or a task file cannot be used.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ConfigError(
            "--harness: needs the package lm_eval, which is not installed; run pip install 'redistill[eval]'"
        ) from error
    paths = [Path(task) for task in tasks if task.endswith((".yaml", ".yml"))]
    for path in paths:
        if str(path) not in allow_code:
            raise ConfigError(
                f"--harness {path}: a task file can execute code, through its templates and functions; if you trust it, add "
                f"--allow-code {path}"
            )
    manager = TaskManager(include_path=[str(folder) for folder in dict.fromkeys(path.parent for path in paths)] or None)
    names = [_name(Path(task)) if Path(task) in paths else task for task in tasks]
    if unknown := [name for name in names if name not in manager.all_tasks]:
        raise ConfigError(f"--harness: no task {', '.join(unknown)}; list the tasks with lm_eval ls tasks")
    return manager, names


def _name(path: Path) -> str:
    """Return the name of the task in a task file."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = plain_line(str(error))[:200]
        raise ConfigError(f"--harness {path}: cannot be read as YAML ({reason}); correct the file, or name a task") from error
    name = found.get("task") if isinstance(found, dict) else None
    if not isinstance(name, str):
        raise ConfigError(f"--harness {path}: has no field `task` with the name of the task; add it")
    return name


def _numbers(values: Mapping[str, object]) -> dict[str, Json]:
    """Return the metrics of a task as JSON values.

    A value is a number, or the text "N/A" if the harness does not compute a standard error.
    """
    return {name: cast("Json", value if isinstance(value, int | float | str) else str(value)) for name, value in values.items()}
