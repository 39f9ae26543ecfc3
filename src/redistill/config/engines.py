"""The generation engine of a command, parsed from the text of the option --engine."""

from dataclasses import dataclass

from redistill.config import decode as decoding
from redistill.config import parse
from redistill.errors import ConfigError
from redistill.generation.local import LocalEngineConfig
from redistill.generation.vllm import VllmEngineConfig
from redistill.models.static_cache import DecoderKind

EngineConfig = LocalEngineConfig | VllmEngineConfig


@dataclass(frozen=True, kw_only=True)
class _Section:
    """A recipe that has only the section `engine`."""

    engine: EngineConfig


def own_engine(engine: object) -> LocalEngineConfig | None:
    """Return `engine` if it is the engine `local`; None for other engines.

    Example:
        >>> own_engine(None) is None
        True
    """
    return engine if isinstance(engine, LocalEngineConfig) else None


def decoder_of(engine: object) -> DecoderKind | None:
    """Return `decoder` of the engine `local`; None for other engines.

    Example:
        >>> decoder_of(LocalEngineConfig(decoder="static"))
        'static'
    """
    own = own_engine(engine)
    return None if own is None else own.decoder


def decode_engine(text: str) -> EngineConfig:
    """Parse a text into the settings of an engine.

    The text is YAML, with the fields of the section `engine` of a recipe.

    Raises:
        ConfigError: the text is not valid YAML, or a field is unknown or has an invalid value.

    Example:
        >>> decode_engine("{kind: vllm, url: 'http://127.0.0.1:8000/v1', model: student}").model
        'student'
        >>> decode_engine("{kind: other}")
        Traceback (most recent call last):
            ...
        redistill.errors.ConfigError: --engine: engine.kind = 'other': no such kind; choose one of local, vllm
    """
    try:
        section = decoding.decode(_Section, {"engine": parse.parse_override(f"engine={text}").value}, {})
    except ConfigError as error:
        raise ConfigError(f"--engine: {error}") from error
    return section.engine
