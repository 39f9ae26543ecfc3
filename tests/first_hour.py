"""Executes the commands of the README's quick start with the real model, in a folder of its own.

    python tests/first_hour.py FOLDER             every command; hours on one core
    python tests/first_hour.py FOLDER --short     2 updates instead of 60, 2 prompts of a test set

The command `redistill` is the one on PATH. The commands that install are left out (`make first-hour` executes them before), as
is what follows "Other models" in the README, which needs the hub; tests/test_docs.py executes that with a small model.
"""

import argparse
import json
import re
import shlex
import subprocess
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
WRITTEN = ["runs/smollm2-sample/report.html", "runs/mine/export/ollama/Modelfile", "runs/mine/export/ollama/model.gguf"]
SHORT = [
    *("training.updates=2", "training.batch_size=4", "training.evaluate_every=0", "data.validation_rows=4"),
    *("data.tokens.response_tokens=8", "evaluation.seeds=[10]", "evaluation.limit=2"),
]


def quick_start_commands(text: str) -> list[list[str]]:
    """Return the words of each `redistill` command between "Quick start" and "Other models" in the README."""
    section = text.partition("## Quick start")[2].partition("**Other models**")[0]
    shell = "".join(re.findall(r"^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL))
    found = [shlex.split(line, comments=True) for line in shell.splitlines()]
    return [words for words in found if words[:1] == ["redistill"]]


def write_own_data(folder: Path) -> None:
    """Write the files of the user that the README names: rows of another form than the sample's."""
    for name, numbers in (("mine.jsonl", range(200)), ("mine-test.jsonl", range(200, 220))):
        rows = [{"instruction": f"Add one to {number}.", "output": f"The result is {number + 1}."} for number in numbers]
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    """Execute the commands in order; stop at the first failure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--short", action="store_true")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    write_own_data(options.folder)
    for words in quick_start_commands(README.read_text(encoding="utf-8")):
        print("$", shlex.join(words), flush=True)
        changes = SHORT if options.short and words[1] == "run" else []
        subprocess.run([*words, *changes], cwd=options.folder, check=True)
    missing = [name for name in WRITTEN if not (options.folder / name).exists()]
    if missing:
        raise SystemExit(f"the quick start has not written {', '.join(missing)}")


if __name__ == "__main__":
    main()
