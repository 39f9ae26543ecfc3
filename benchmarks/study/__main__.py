"""Runs the study part by part; the same command resumes it.

    python -m benchmarks.study --data data --model models/smollm2            # planned for 60 core-hours
    python -m benchmarks.study --toy                                         # the same tables at toy size

`--data` is a folder with dolly/train.jsonl, dolly/validation.jsonl, t0/train.jsonl, and NAME/test.jsonl of the five test sets.
prompts.json lists the rows of each test set that are used.  Parts, in order:

teacher     fine-tunes the teacher
healed      trains the student with which every run starts
rates       every method with two learning rates; validation chooses one
main        every method, three training seeds
ablations   parts of MGSR, one seed
drafts      divergences for draft models, two seeds
ends        scores of the teacher and of the student before training
fresh       divergences from the teacher on the student's own text, by run
export      the scores of all runs, without texts, in --results
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import yaml

from benchmarks.study.fresh import measure
from benchmarks.study.plan import HERE, Plan, Tree, chosen_rates
from redistill.storage import files

SWEEPS = ("main", "ablations", "drafts")
PARTS = ("teacher", "healed", "rates", *SWEEPS, "ends", "fresh", "export")
SOURCES = {"dolly-train": "dolly/train", "dolly-validation": "dolly/validation", "t0-train": "t0/train"}


def redistill(*arguments: object) -> None:
    """Run a command of redistill; end with its exit code if it fails."""
    command = [sys.executable, "-P", "-m", "redistill", *map(str, arguments)]
    print("\n$ redistill", *arguments, flush=True)
    if status := subprocess.run(command, check=False).returncode:
        raise SystemExit(status)


def write(plan: Plan, name: str, tree: Tree) -> Path:
    """Write a recipe; a recipe that did not change keeps its file."""
    path = files.make_folder(plan.work / "recipes") / f"{name}.yaml"
    text = yaml.safe_dump(tree, sort_keys=False)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        files.write_text(path, text)
    return path


def prepare_data(plan: Plan, data: Path | None) -> str:
    """Write the data of the study, and return the model of which the teacher is made (toy size)."""
    folder = files.make_folder(plan.work / "data")
    if data is None:
        from redistill.runs.demo import toy_world

        world = toy_world()
        for name in ("train", "validation", "test"):
            files.write_text(folder / f"{name}.jsonl", (world / f"{name}.jsonl").read_text(encoding="utf-8"))
        return str(world / "teacher" / "model")
    for name, source in SOURCES.items():
        files.write_text(folder / f"{name}.jsonl", (data / f"{source}.jsonl").read_text(encoding="utf-8"))
    for name, rows in json.loads((HERE / "prompts.json").read_text(encoding="utf-8")).items():
        lines = [line for line in (data / name / "test.jsonl").read_text(encoding="utf-8").splitlines() if line.strip()]
        files.write_text(folder / f"{name}-test.jsonl", "".join(lines[row] + "\n" for row in rows))
    return ""


def ends(plan: Plan) -> None:
    """Score the teacher and the student before training, with the settings of the tables."""
    evaluation, tests = plan.settings["base"]["evaluation"], plan.settings["shared"]["data"]["tests"]
    for name in ("teacher", "healed"):
        data = [word for test, path in tests.items() for word in ("--data", f"{test}={path}")]
        options = [
            "--seeds",
            ",".join(map(str, evaluation["seeds"])),
            *(["--limit", evaluation["limit"]] if "limit" in evaluation else []),
        ]
        teacher = [] if name == "teacher" else ["--teacher", plan.work / "teacher"]
        redistill("evaluate", plan.work / name, *data, *options, *teacher, "--out", plan.work / f"scores-{name}")


def run(plan: Plan, part: str, results: Path, jobs: int) -> None:
    """Run one part."""
    if part in ("teacher", "healed"):
        redistill("train", write(plan, part, plan.recipe(part)))
    elif part == "rates":
        redistill("sweep", write(plan, part, plan.rates()), "--out", plan.work / part, "--jobs", jobs)
        files.write_json(plan.work / "rates.json", chosen_rates(plan, plan.work / part))
    elif part in SWEEPS:
        recipe = write(plan, part, getattr(plan, part)(files.read_json(plan.work / "rates.json")))
        redistill("sweep", recipe, "--out", plan.work / part, "--jobs", jobs)
    elif part == "ends":
        ends(plan)
    elif part == "fresh":
        for sweep in SWEEPS[:2]:
            measure(plan.work / sweep, plan.work / f"fresh-{sweep}.json")
    else:
        for sweep in SWEEPS:
            redistill("export", plan.work / sweep, "--to", "scores", "--out", files.make_folder(results) / sweep)
        for path in (*plan.work.glob("fresh-*.json"), plan.work / "rates.json", *plan.work.glob("scores-*/scores.json")):
            name = path.name if path.name != "scores.json" else f"{path.parent.name}.json"
            files.write_text(results / name, path.read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--toy", action="store_true", help="the toy world in place of a real model")
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--model", default="models/smollm2", help="the model of which the teacher is made")
    parser.add_argument("--work", type=Path, help="folder of the runs (default: runs/study, or runs/study-toy)")
    parser.add_argument("--results", type=Path, help="folder of the exported scores (default: WORK/results)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to run (default: all)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    options = parser.parse_args()
    if not options.toy and options.data is None:
        parser.error("--data FOLDER is needed, or --toy")
    work = options.work or Path("runs/study-toy" if options.toy else "runs/study")
    plan = Plan("toy" if options.toy else "real", work, options.model)
    made = prepare_data(plan, None if options.toy else options.data)
    plan = Plan(plan.size, work, made or options.model)
    for part in options.only:
        run(plan, part, options.results or work / "results", options.jobs)


if __name__ == "__main__":
    main()
