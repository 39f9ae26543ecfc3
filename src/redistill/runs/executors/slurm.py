"""The executor `slurm`: writes array jobs for Slurm, and submits nothing.

The jobs are divided into stages: the fine-tunings that other jobs need, and then the runs.  Each stage is a script with an
array job that has one task per job.  The commands that submit the scripts are printed.
"""

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from redistill.errors import ConfigError
from redistill.processes.children import child_environment, current_umask
from redistill.runs.executors import Outcome, Request, Resources
from redistill.runs.jobs import Job
from redistill.storage import files

WARNING_S = 120
"""Seconds before the time limit at which Slurm sends SIGTERM, so that a run saves a checkpoint."""


class Slurm:
    """Writes array jobs for Slurm, and returns the commands that submit them.

    Args:
        request: The resources of a run, the maximum number of concurrent runs, and the folder of the sweep.

    Example:
        >>> from redistill.runs.executors import Resources
        >>> Slurm(Request(address=None, folder=Path("runs/a"), limit=2, resources=Resources())).request.limit
        2
    """

    def __init__(self, request: Request) -> None:
        self.request = request

    def execute(
        self,
        jobs: Sequence[Job],
        *,
        lock: Sequence[int],
        on_start: Callable[[Job], None],
        on_end: Callable[[Job, int, float], None],
    ) -> Outcome:
        folder, commands = self.request.folder.absolute(), list[str]()
        stages = _stages(jobs)
        for number, stage in enumerate(stages, start=1):
            script = folder / f"slurm-{number}.sh"
            for job in stage:
                files.open_log(job.log).close()  # rejects a link, which the shell would follow
            files.write_text(script, array_script(stage, self.request.resources, self.request.limit))
            logs = str(folder).replace("%", "%%") + "/slurm-%A_%a.log"
            after = ["--dependency=afterok:$previous", "--kill-on-invalid-dep=yes"] if number > 1 else []
            submit = " ".join(["sbatch", "--parsable", *after, f"--output={shlex.quote(logs)}", shlex.quote(str(script))])
            commands.append(submit.replace(" --parsable", "") if number == len(stages) else f"previous=$({submit})")
        return Outcome(codes={}, commands=commands)


def create(request: Request) -> Slurm:
    """Create the executor.

    Raises:
        ConfigError: an address is given, or a run needs a fraction of a GPU.
    """
    if request.address is not None:
        raise ConfigError(f"--on slurm={request.address}: has no address; use --on slurm")
    if request.resources.gpus % 1:
        raise ConfigError(f"resources.gpus = {request.resources.gpus}: Slurm needs a whole number of GPUs for a run")
    return Slurm(request)


def array_script(jobs: Sequence[Job], resources: Resources, limit: int | None) -> str:
    """Return the script of an array job with one task per job.

    Paths and arguments are quoted for the shell.  The options of sbatch in the script are numbers and fixed words.

    Args:
        jobs: The jobs; task i of the array runs jobs[i].
        resources: What one task needs.
        limit: Maximum number of concurrent tasks; None if it is not limited.
    """
    options = [
        "--job-name=redistill",
        f"--array=0-{len(jobs) - 1}" + (f"%{limit}" if limit else ""),
        "--ntasks=1",
        f"--cpus-per-task={resources.cpus}",
        *([f"--gres=gpu:{int(resources.gpus)}"] if resources.gpus else []),
        *([f"--mem={max(1, int(resources.memory_gb * 1e9 / 2**20))}M"] if resources.memory_gb else []),
        "--requeue",
        "--open-mode=append",
        f"--signal=B:TERM@{WARNING_S}",
    ]
    lines = ["#!/bin/bash", *(f"#SBATCH {option}" for option in options), f"cd -- {shlex.quote(str(Path.cwd()))} || exit 2"]
    if python_path := child_environment().get("PYTHONPATH"):
        lines.append(f"export PYTHONPATH={shlex.quote(python_path)}")
    lines += [
        f"umask {current_umask():04o}",
        "export PYTHONSAFEPATH=1",
        f"export OMP_NUM_THREADS=${{OMP_NUM_THREADS:-{resources.cpus}}}",
    ]
    lines.append('case "$SLURM_ARRAY_TASK_ID" in')
    lines += [
        f"{index}) log={shlex.quote(str(job.log.absolute()))} command=({shlex.join(job.command)}) ;;"
        for index, job in enumerate(jobs)
    ]
    lines += ['*) echo "redistill: SLURM_ARRAY_TASK_ID is not a task of this script" >&2; exit 2 ;;', "esac"]
    lines.append('exec "${command[@]}" >> "$log" 2>&1  # exec: the run itself receives SIGTERM')
    return "\n".join(lines) + "\n"


def _stages(jobs: Sequence[Job]) -> list[list[Job]]:
    """Divide jobs into stages.

    A job is in a later stage than each job that it needs.  All jobs that no other job needs are in the last stage.
    """
    needed = {name for job in jobs for name in job.needs}
    depth = dict[str, int]()
    for job in jobs:  # each after the jobs that it needs
        depth[job.name] = 1 + max((depth[name] for name in job.needs), default=-1)
    last = [job for job in jobs if job.name not in needed]
    before = [[job for job in jobs if job.name in needed and depth[job.name] == at] for at in range(len(needed))]
    return [stage for stage in (*before, last) if stage]
