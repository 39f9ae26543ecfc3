"""The commands that pages show, in a form that small models execute, and the folder with the files that the pages name.

Everything that differs from the pages is in this file: the commands that are not executed, the words that are replaced, and the
settings that are appended. `test_page_commands` executes the commands.
"""

import json
import re
import shlex
import shutil
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

from redistill.config.methods import METHODS
from redistill.data.sample import copy_sample
from redistill.storage import files
from tests.first_hour import SHORT, write_own_data
from tests.runs.test_judge import judging
from tests.servers.fake import ModelScript, Script
from tests.servers.fake_vllm import VllmScript
from tests.tokenizers import CHATML
from tests.worlds import LLAMA, rows, write_model, write_rows

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

NOT_EXECUTED = {
    "python3 -m venv": "the environment exists: `make first-hour` and `make pages` create one",
    "python -m venv": "the same",
    ". .venv": "the same",
    "pip install": "needs a network",
    "ollama": "needs Ollama",
    "llama-": "needs llama.cpp",
    "python convert_hf_to_gguf.py": "needs llama.cpp",
    "lm_eval": "needs lm-evaluation-harness, which downloads its data",
    "redistill evaluate runs/first --harness": "the same",
    "vllm serve": "needs vLLM; the server of tests is used",
    "VLLM_SERVER_DEV_MODE=1 vllm serve": "the same",
    "redistill run mine.yaml method=opd 'engine={kind: vllm, mode: colocated}'": "needs vLLM",
    "while true": "the loop that restarts vLLM",
    "version=$": "the same",
    "while [": "the same",
    "kill $server": "the same",
    "done": "the same",
    "torchrun": "tests/integration/test_processes.py starts several processes",
    "accelerate launch": "tests/runs/test_launcher.py starts several processes",
    "redistill run mine.yaml --allow-host": "needs two servers with certificates; tests/servers/test_address.py",
    "redistill judge runs/mgsr --url https": "the same",
    "redistill sweep table1-toy --on ray": "needs Ray; make ray",
}
"""Start of a line -> why it is not executed."""

RECIPES_OF_THE_HUB = ("smollm2-dolly", "smollm2-small")
FROM_FILES = ["teacher.model=models/smollm2", "data.train=mine.jsonl", "data.tests={dolly: mine-test.jsonl}"]
"""Settings that replace what the recipes of the hub load from there."""

HUB = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": "models/smollm2",
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": "models/smollm2",
    "--data dolly ": "--data dolly=mine-test.jsonl ",
    "--data vicuna ": "--data vicuna=mine-test.jsonl ",
    "--data gsm8k ": "--data gsm8k=gsm8k.jsonl ",
    "data check --recipe smollm2-dolly": "data check --recipe mine.yaml",
}
"""Words that name models and data of the hub -> files."""

APPENDED = {
    "run": SHORT,
    "cache-teacher": ["data.validation_rows=4", "data.tokens.response_tokens=8"],
    "doctor": ["data.validation_rows=4", "data.tokens.response_tokens=8"],
    "evaluate": ["--seeds", "10", "--limit", "2", "--response-tokens", "8"],
    "sweep": ["--dry-run"],
    "chat": ["--max-tokens", "8"],
}
"""Command -> what is appended, so that it takes seconds."""

TUTORIAL = DOCS / "tutorial.md"
CHANGEABLE = {"run", "train", "cache-teacher", "estimate", "doctor"}
"""Commands that accept settings."""

UPDATES = re.compile(r"\b(training\.updates=)(\d+)")
ADDRESS = "http://127.0.0.1:8000/v1"


def pages() -> list[Path]:
    """The pages with commands."""
    return [path for path in sorted(DOCS.rglob("*.md")) if list(lines(path)) and "lab-log" not in path.parts]


def lines(page: Path) -> Iterator[str]:
    """The lines of the shell blocks of a page, with continued lines joined."""
    text = page.read_text(encoding="utf-8")
    for _, block in re.findall(r"^( *)```sh\n(.*?)^\1```", text, re.MULTILINE | re.DOTALL):
        found = re.sub(r"\s*\\\n\s*", " ", textwrap.dedent(block)).splitlines()
        yield from (line.strip() for line in found if line.strip() and not line.startswith("#"))


def reason_not_executed(line: str) -> str | None:
    """The start of a line in NOT_EXECUTED, None for a line that is executed."""
    return next((start for start in NOT_EXECUTED if line.startswith(start)), None)


def replaced(line: str, url: str) -> str:
    """A line with files in place of names of the hub, and the address of the server of the tests."""
    for name, file in HUB.items():
        line = line.replace(name, file)
    return line.replace(ADDRESS, url)


def shortened(words: list[str], page: Path) -> list[str]:
    """The words of `redistill` with fewer updates, and with the settings of APPENDED and FROM_FILES."""
    command, named = words[0], [re.sub(UPDATES, _fewer, word) for word in words]
    added = settings_of_tutorial() if page == TUTORIAL and command == "run" else list(APPENDED.get(command, []))
    if command == "doctor" and not words[1:]:  # without a recipe, the machine is checked
        added = []
    if any(UPDATES.search(word) for word in words):
        added = [setting for setting in added if not UPDATES.match(setting)]
    if any("student.finetune=" in word for word in words):
        added.append("student.finetune.updates=2")
    if command in CHANGEABLE and words[1:] and needs_hub(words[1]):
        is_cached = any("kind: cached" in word for word in words)
        added = [*(setting for setting in FROM_FILES if not (is_cached and setting.startswith("teacher."))), *added]
    return [*named, *added]


def needs_hub(recipe: str) -> bool:
    """Whether a recipe of the package, or a copy of one, names models and data of the hub."""
    path = Path(recipe)
    return recipe in RECIPES_OF_THE_HUB or (path.suffix == ".yaml" and "HuggingFaceTB/" in path.read_text(encoding="utf-8"))


def created(line: str) -> str | None:
    """The recipe that a line creates; each section of a page starts without it."""
    found = re.search(r"redistill init (\S+)|recipes copy .*--out (\S+)", line)
    return (found[1] or found[2]) if found else None


def settings_of_tutorial() -> list[str]:
    """The settings that the tutorial's outputs were printed with."""
    (block,) = re.findall(r"```text\n(training\.updates=.*?)```", TUTORIAL.read_text(encoding="utf-8"), re.DOTALL)
    return shlex.split(block)


NOT_PRINTED = {"compiling"}
"""Lines of a page that a run of these small models does not print: their vocabulary is too small to compile for."""


def shown_output(page: Path) -> set[str]:
    """The masked lines of a page's blocks of output; not its settings, and not an error, which a test of its own compares."""
    found = re.findall(
        r"^```text\n(?!training\.|redistill: )(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    return {masked(line) for line in "".join(found).splitlines()} - {"", *NOT_PRINTED}


def masked(line: str) -> str:
    """A line of output without its numbers, with bytes in one unit, and without the lines and widths of tables."""
    plain = re.sub(r"[+−-]?\d[\d,.:]*(?:e[+-]?\d+)?", "#", line)
    return re.sub(r"[\s\u2500-\u257f]+", " ", re.sub(r"# [kMGT]B", "# B", plain)).strip()


def _fewer(found: re.Match[str]) -> str:
    return f"{found[1]}{max(2, int(found[2]) // 40)}"


# --- files --------------------------------------------------------------------------------------------------------------


def prepare(folder: Path) -> None:
    """Write the models, data, recipes and modules that the pages name."""
    (folder / "models").mkdir(parents=True)
    for name, seed, changes in (
        ("smollm2", 1, {"num_hidden_layers": 30, "hidden_size": 16, "intermediate_size": 16}),
        ("student", 2, {"num_hidden_layers": 2}),
        ("large", 3, {}),
        ("small", 4, {"num_hidden_layers": 2}),
    ):
        write_model(folder / "models" / name, LLAMA, seed, max_position_embeddings=512, **changes)
        files.write_text(folder / "models" / name / "chat_template.jinja", CHATML)
    copy_sample(folder / "sample")
    write_own_data(folder)
    for name in ("dolly", "t0"):
        (folder / name).mkdir()
    for count, offset, name in (
        (24, 0, "train.jsonl"),
        (8, 32, "test.jsonl"),
        (24, 0, "dolly/train.jsonl"),
        (8, 24, "dolly/validation.jsonl"),
        (8, 32, "dolly/test.jsonl"),
        (24, 40, "t0/train.jsonl"),
    ):
        write_rows(folder / name, rows(count, offset))
    write_rows(folder / "gsm8k.jsonl", [{"question": f"What is {n} + 1?", "answer": f"#### {n + 1}"} for n in range(4)])
    texts = [" ".join(row["output"] for row in rows(24, offset)) for offset in (0, 24)]
    files.write_text(folder / "corpus.txt", texts[0])
    write_rows(folder / "more.jsonl", [{"text": texts[1]}])
    files.write_text(folder / "mine.yaml", _recipe("mine", "gkd"))
    files.write_text(folder / "recipe.yaml", _recipe("recipe", "sft"))
    page = (DOCS / "adding/divergence.md").read_text(encoding="utf-8")
    for name, code in re.findall(r"```python\n# (\w+)\.py\n(.*?)```", page, re.DOTALL):
        files.write_text(folder / f"{name}.py", code)


def _recipe(name: str, method: str) -> str:
    """A recipe of the files of `prepare`; JSON is YAML."""
    return json.dumps(
        {
            "name": name,
            "method": method,
            "teacher": {"model": "models/large"},
            "student": {"model": "models/small"},
            "data": {
                "train": ["train.jsonl"],
                "validation_rows": 4,
                "tests": {"mine": "test.jsonl"},
                "tokens": {"prompt_tokens": 96, "response_tokens": 16},
            },
            "training": {"updates": 2, "batch_size": 4},
            "evaluation": {"seeds": [10], "limit": 2},
        }
    )


# A run for the pages that look at one: its steps and checkpoints are those that docs/inspect.md names.
EXAMPLE_RUN = [
    *("run", "mine.yaml", "method=mgsr", "student.lora={rank: 4}", "training.updates=40", "training.log_every=10"),
    *("training.save_every=20", "training.evaluate_every=20", "--out", "example"),
]


def runs_that_exist_before(page_lines: list[str]) -> set[str]:
    """The run folders that the commands of a page read before one of them writes the folder."""
    written, read = set[str](), set[str]()
    for line in page_lines:
        out = re.search(r"--out (runs/[\w-]+)", line)
        default = re.match(r"redistill (?:run|train|sweep) ([\w-]+)(?: |$)", line)
        own = out[1] if out else f"runs/{default[1]}" if default else None
        read |= {name for name in re.findall(r"\bruns/[\w-]+", line) if name != own} - written
        written |= {own} if own else set()
    return read


def copy_runs(example: Path, folder: Path, names: set[str]) -> None:
    """Copy the run to the names that a page uses; a name begins with the method that the page assumes, such as runs/sft."""
    for name in sorted(names):
        shutil.copytree(example, folder / name)
        method = Path(name).name.partition("-")[0]
        path = folder / name / "run.json"
        if method in METHODS:
            files.write_json(path, {**files.read_json(path), "method": method})


# --- servers ------------------------------------------------------------------------------------------------------------


def script_of(page: Path, folder: Path) -> Script | None:
    """The server that the page's address stands for; None for a page without a server."""
    scripts: dict[str, Callable[[], Script]] = {
        "judge.md": lambda: judging(lambda a, b: "tie"),
        "served-teacher.md": lambda: ModelScript(folder / "models/large", name="large", max_logprobs=64),
        "vllm-engine.md": lambda: VllmScript(folder / "models/small"),
    }
    return scripts[page.name]() if page.name in scripts else None
