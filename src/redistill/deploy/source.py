"""Lookup of the model that a user names: the student of a run, or another model."""

from dataclasses import dataclass, replace
from pathlib import Path

from redistill.data.alpaca import has_alpaca_jinja
from redistill.data.tokenize import TokenizeConfig
from redistill.errors import CheckpointError
from redistill.interfaces import Tokenizer
from redistill.models.load import ModelConfig
from redistill.runs.folder import RUN_FILE, has_model
from redistill.runs.templates import tokens_of


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model, and the run that trained it.

    Args:
        name: The run folder or the model, as given by the user.
        model: The folder or name of the model.
        run: The run folder; None if the model is not the student of a run.
    """

    name: str
    model: str
    run: Path | None

    @property
    def config(self) -> ModelConfig:
        """Settings that load the model with the dtype of its files."""
        return ModelConfig(model=self.model, dtype="auto")

    @property
    def label(self) -> str:
        """Short name of the model: the last part of its path or hub name."""
        return (self.run or Path(self.name)).resolve().name or "model"


def find_source(name: str) -> Source:
    """Find the model that a user names, and the run that trained it.

    Args:
        name: A run folder, a model folder, a hub name, or the path of a .gguf file.  The folder `model` of a run folder also
            belongs to the run.

    Raises:
        CheckpointError: the run folder has no trained student.
        ConfigError: `name` is not a valid name of a model.
    """
    path = Path(name)
    if (path / RUN_FILE).is_file():
        if not has_model(path):
            raise CheckpointError(f"{name}: has no trained student; run `redistill train` with the same recipe first")
        return Source(name=name, model=str(path / "model"), run=path)
    parent = path.resolve().parent
    is_student = path.resolve().name == "model" and (parent / RUN_FILE).is_file()
    return Source(name=name, model=ModelConfig(model=name).model, run=parent if is_student else None)


def tokens_for(source: Source, tokenizer: Tokenizer) -> TokenizeConfig:
    """Return the settings for rendering the prompts of a model.

    The student of a run has the settings that the run was trained with.  Another model has the chat template of its tokenizer,
    or the Alpaca template if the tokenizer has no chat template.

    Args:
        source: The model.
        tokenizer: The tokenizer of the model.

    Returns:
        The settings; their template is "alpaca" or "chat".

    Raises:
        ConfigError: run.json of the run folder, or redistill.json of the model folder, has no valid settings.
    """
    trained = tokens_of(str(source.run or source.model))
    if trained.template != "auto":
        return trained
    is_alpaca = not tokenizer.chat_template or has_alpaca_jinja(tokenizer)
    return replace(trained, template="alpaca" if is_alpaca else "chat")
