"""Generation of answers in a conversation, streamed token by token."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import torch

from redistill.config.run import load_config
from redistill.data.sequences import SequenceEncoder
from redistill.deploy.source import Source, find_source, tokens_for
from redistill.errors import ConfigError, DataError, check_field
from redistill.interfaces import CausalModel, Tokenizer
from redistill.models.families import position_limit
from redistill.models.load import ModelConfig, end_token_ids, load_model
from redistill.randomness import torch_seed
from redistill.records import Conversation, Record, Turn
from redistill.runs.folder import RUN_FILE
from redistill.runs.stages import teacher_source


@dataclass(frozen=True, kw_only=True)
class ChatConfig:
    """Settings for generating answers.

    Args:
        temperature: Temperature of sampling, >= 0; 0 is greedy decoding.
        top_p: Probability mass of top-p sampling, in (0, 1].
        max_tokens: Largest number of tokens of an answer, >= 1.
        seed: Seed of sampling.

    Raises:
        ConfigError: a value is out of range.

    Example:
        >>> ChatConfig(temperature=-1.0)
        Traceback (most recent call last):
            ...
        redistill.errors.ConfigError: temperature = -1.0: must be >= 0 and finite; 0 is greedy decoding
    """

    temperature: float = 0.7
    top_p: float = 1.0
    max_tokens: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        finite = 0 <= self.temperature < float("inf")
        check_field(self, "temperature", finite, "must be >= 0 and finite; 0 is greedy decoding")
        check_field(self, "top_p", 0 < self.top_p <= 1, "must lie in (0, 1]; 1 keeps every token")
        check_field(self, "max_tokens", self.max_tokens >= 1, "must be >= 1")


@dataclass(frozen=True, kw_only=True)
class Speaker:
    """A model that answers.

    Args:
        label: Name that is printed before answers.
        model: The model, in eval mode.
        tokenizer: The tokenizer of the model.
        encoder: Renders and encodes prompts with the template of the model.
    """

    label: str
    model: CausalModel
    tokenizer: Tokenizer
    encoder: SequenceEncoder

    def answer(self, turns: Sequence[Turn], config: ChatConfig, emit: Callable[[str], None]) -> str:
        """Generate the answer to a conversation.

        Args:
            turns: The messages; the last one is a user message.
            config: How the answer is generated.
            emit: Function that is called with each new part of the answer.

        Returns:
            The whole answer.  It is untrusted text.

        Raises:
            DataError: the template rejects the conversation, or the conversation has too many tokens for the model.
        """
        from transformers import GenerationConfig, TextStreamer

        (ids,) = self.encoder.prompts([Record(record_id="chat", prompt=Conversation(tuple(turns)), references=())])
        if isinstance(ids, DataError):
            raise ids
        limit = position_limit(self.model) or getattr(self.model.config, "max_position_embeddings", None)
        longest = config.max_tokens if limit is None else min(config.max_tokens, limit - len(ids))
        if longest < 1:
            raise DataError(
                f"{self.label}: the conversation has {len(ids)} tokens, and the model has {limit} positions; /reset starts "
                "a new conversation"
            )
        parts: list[str] = []

        def finalized(text: str, stream_end: bool = False) -> None:
            parts.append(text)
            emit(text)

        streamer = TextStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        streamer.on_finalized_text = finalized
        sampling = {"temperature": config.temperature, "top_p": config.top_p, "top_k": 0} if config.temperature else {}
        settings = GenerationConfig(
            max_new_tokens=longest,
            do_sample=bool(config.temperature),
            eos_token_id=list(end_token_ids(self.model, self.tokenizer)),
            pad_token_id=self.tokenizer.pad_token_id,
            **sampling,
        )
        ids_BT = torch.tensor([ids], device=self.model.device)
        with torch.random.fork_rng(), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of transformers, about fields of the generation config
            torch.manual_seed(torch_seed(config.seed, "chat", len(turns)))
            generate = cast("Callable[..., object]", self.model.generate)
            generate(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT), generation_config=settings, streamer=streamer)
        return "".join(parts).strip()


def load_speakers(name: str, teacher: str | None, dtype: Literal["auto", "float32", "bfloat16"]) -> list[Speaker]:
    """Load a model, and optionally a second model that answers the same prompts.

    Args:
        name: A run folder, or the name of a model, as in `find_source`.
        teacher: Name of the second model; "" is the teacher of the run; None loads no second model.
        dtype: "auto" or the dtype of the weights, as in `ModelConfig`.

    Raises:
        ConfigError: `teacher` is "", but `name` is not a run with a local teacher.
        ModelError: a model cannot be loaded.
    """
    source = find_source(name)
    settings = replace(source.config, dtype=dtype)
    second = None if teacher is None else _teacher(source, teacher)
    speakers = [_load("student" if second else source.label, source, settings)]
    if second is not None:
        speakers.append(_load("teacher", find_source(second.model), replace(second, dtype=dtype)))
    return speakers


def _teacher(source: Source, name: str) -> ModelConfig:
    if name:
        return find_source(name).config
    found = None if source.run is None else teacher_source(load_config(Path(source.run) / RUN_FILE))
    if found is None:
        raise ConfigError(f"{source.name}: is not a run with a local teacher; name the teacher with --teacher MODEL")
    return ModelConfig(model=found.model, revision=found.revision, adapter=found.adapter)


def _load(label: str, source: Source, config: ModelConfig) -> Speaker:
    model, tokenizer = load_model(config)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    encoder = SequenceEncoder(tokenizer, tokens_for(source, tokenizer))
    return Speaker(label=label, model=model, tokenizer=tokenizer, encoder=encoder)
