"""The model card of an exported student."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import yaml
from markupsafe import Markup

from redistill.records import Json
from redistill.reports.comparison import Row, evaluations, report_rows
from redistill.reports.folders import RunFolder, at, mapping, read_run
from redistill.reports.pages import markdown_text, render
from redistill.storage.redaction import plain_line

_LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]{0,40}")


def model_card(
    run_folder: Path | None,
    label: str,
    *,
    target: Literal["transformers", "vllm", "adapter", "gguf", "ollama"],
    licences: Mapping[str, str],
) -> str:
    """Return the model card of an exported model, as Markdown with metadata in YAML.

    All texts of the run are untrusted: Markdown in them is escaped, secrets are masked, and paths of the home folder are
    shortened.

    Args:
        run_folder: Folder of the run; None for a model that no run of redistill has trained.
        label: Title of the card.
        target: What was exported.
        licences: Licences of the models from which the student was made.  The keys are the names of these models.

    Raises:
        CheckpointError: a file of the run folder is damaged.
    """
    run = None if run_folder is None else read_run(run_folder)
    page = {
        "metadata": Markup(yaml.safe_dump(_metadata(run, target, licences), sort_keys=False)),
        "label": label,
        "licences": {_place(name): licence for name, licence in licences.items()},
        "run": None if run is None else {key: run.description.get(key) for key in ("method", "created", "commit")},
        "command": None if run is None else Markup(_command(run)),
        "models": [] if run is None else list(_models(run)),
        "data": [] if run is None else list(_data(run)),
        "rows": [] if run is None else _rows(run),
    }
    return render("model-card.md", page, markdown_text)


def _metadata(run: RunFolder | None, target: str, licences: Mapping[str, str]) -> dict[str, Json]:
    """Return the metadata of the card for the model hub.

    The metadata contain a licence only if all models from which the student was made have this licence.
    """
    named = {licence.strip().lower() for licence in licences.values()}
    licence = named.pop() if len(named) == 1 else ""
    library = {"adapter": "peft", "transformers": "transformers", "vllm": "transformers"}.get(target, "gguf")
    bases = [] if run is None else [at(run.description, "config", role, "model") for role in ("student", "teacher")]
    base = next((str(name) for name in bases if name and name != "teacher"), "")
    return {
        **({"license": licence} if _LICENCE.fullmatch(licence) else {}),
        "library_name": library,
        "pipeline_tag": "text-generation",
        **({"base_model": base} if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", base) else {}),
        "tags": ["redistill", "knowledge-distillation"],
    }


def _models(run: RunFolder) -> Iterator[tuple[str, str, Json]]:
    """Yield the role, name and number of parameters of each model in run.json."""
    for role in ("teacher", "student"):
        about = mapping(at(run.description, "models", role))
        if about:
            name = _place(str(about.get("name") or ""))
            is_part = role == "student" and name == "teacher"  # a student that was built from layers of its teacher
            yield role, "layers of the teacher" if is_part else name, about.get("parameters")


def _data(run: RunFolder) -> Iterator[tuple[str, str, Json]]:
    """Yield the use, source and number of rows of each data set in run.json."""
    for use, about in mapping(run.description.get("data")).items():
        source = mapping(about).get("source") or mapping(about).get("path")
        if source:
            yield use, ", ".join(map(_place, str(source).split(", "))), mapping(about).get("rows")


def _rows(run: RunFolder) -> list[Row]:
    return report_rows(evaluations(run, []))


def _command(run: RunFolder) -> str:
    """Return the command that repeats a run, as one line of a code block."""
    return plain_line(str(run.description.get("command") or "not recorded")).replace(str(Path.home()), "~")


def _place(name: str) -> str:
    """Return the last part of an absolute path; return any other name unchanged.

    The folders of a path are left out, because they describe the author's machine.
    """
    return Path(name).name if Path(name).is_absolute() else name
