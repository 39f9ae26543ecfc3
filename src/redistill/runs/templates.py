"""The prompt templates of runs, with their dates, and of exported students."""

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path

from redistill import __version__
from redistill.config.decode import decode
from redistill.config.run import Run, with_template_date
from redistill.config.sections import DataConfig
from redistill.data.alpaca import alpaca_jinja
from redistill.data.chat import fixed_date
from redistill.data.tokenize import TokenizeConfig
from redistill.errors import ConfigError
from redistill.interfaces import Tokenizer
from redistill.models.load import ModelConfig, load_tokenizer
from redistill.models.snapshots import EXPORT, model_folder
from redistill.processes import signals
from redistill.records import Json
from redistill.reports.folders import at
from redistill.runs.folder import RUN_FILE
from redistill.storage import files

SCHEMA = 1


def dated(config: Run) -> Run:
    """Return a run with the date that its chat template prints.

    The setting `data.tokens.template_date` of the result is the first of these that exists: the date in the recipe, the
    date in the run.json of the run folder, and the current time.  It is None if the chat template prints no date.  All
    processes of a job must call this function, and get the same date.

    Args:
        config: The run; its models need not be trained yet.

    Raises:
        ModelError: the tokenizer of the student cannot be loaded.
        Interrupted: a signal arrived, in this process or another.
    """
    tokens = config.data.tokens
    if tokens.template_date is not None or tokens.template == "alpaca":
        return config
    run_file = config.folder / RUN_FILE
    if run_file.is_file():
        date = at(files.read_json(run_file), "config", "data", "tokens", "template_date")
    else:
        source = config.teacher if config.student.model == "teacher" else config.student
        assert isinstance(source, ModelConfig), "the student consists of layers of the teacher, which must be local"
        date = fixed_date(load_tokenizer(source), None)
    # All processes must call `gather`, including one that finds no run.json; otherwise the others would wait forever.
    return with_template_date(config, signals.gather([date])[0])


def dated_tests(data: DataConfig, tokenizer: Tokenizer, out: Path, settings_file: str) -> DataConfig:
    """Return the test sets of an evaluation with the date of the chat template.

    The date is the first of these that exists: the date of `data`, the date of an interrupted evaluation in the folder `out`,
    and the current time.

    Args:
        data: The test sets, with the settings of tokenisation.
        tokenizer: The tokenizer of the model.
        out: The output folder of the evaluation.
        settings_file: Name of the file with the settings of the evaluation, in this folder.
    """
    date, held = data.tokens.template_date, out / settings_file
    if date is None and held.is_file():
        found = at(files.read_json(held), "tokens", "template_date")
        date = found if isinstance(found, str) else None
    (date,) = signals.gather([fixed_date(tokenizer, date)])[:1]
    return dataclasses.replace(data, tokens=dataclasses.replace(data.tokens, template_date=date))


# --- the exported student -----------------------------------------------------------------------------------------------


def exported_tokenizer(tokenizer: Tokenizer, templates: Mapping[str, int]) -> Tokenizer:
    """Return the tokenizer for the folder of an exported student.

    The chat template of the result is the one that the student was trained with.  If training rows were rendered with the
    tokenizer's chat template, or if all rows were used verbatim, the tokenizer is returned unchanged.  Otherwise, the
    result has the Alpaca template.

    Args:
        tokenizer: The tokenizer of training, which is not changed.
        templates: Number of training rows by template.
    """
    if templates.get("chat") or not templates.get("alpaca"):
        return tokenizer
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = alpaca_jinja(tokenizer)
    return changed


def write_tokens(folder: Path, tokens: TokenizeConfig) -> None:
    """Write redistill.json to the folder of an exported student.

    The file has the settings with which prompts were tokenised in training.
    """
    described: dict[str, Json] = {"schema": SCHEMA, "redistill": __version__, "tokens": dataclasses.asdict(tokens)}
    files.write_json(folder / EXPORT, described)


def tokens_of(model: str) -> TokenizeConfig:
    """Return the prompt template and the length limits for a model.

    If `model` is a run folder, or the folder of a student that redistill exported, the result has the values with which the
    student was trained. For any other model, it has the default values.

    Raises:
        ConfigError: run.json or redistill.json has no valid settings of tokenisation.
        ModelError: there is no such model.
    """
    described, path = Path(model) / RUN_FILE, "config.data.tokens"
    if not described.is_file():
        found = None if model.endswith(".gguf") else model_folder(model, None).find(EXPORT)
        if found is None:
            return TokenizeConfig()
        described, path = found, "tokens"
    tokens = at(files.read_json(described), *path.split("."))
    if not isinstance(tokens, dict):
        raise ConfigError(f"{described}: has no {path}; restore the {described.name} that the run wrote")
    try:
        return decode(TokenizeConfig, tokens, {})  # only this section, since others may need external modules
    except ConfigError as error:
        raise ConfigError(f"{described}: {path}.{error}") from error
