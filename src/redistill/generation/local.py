"""The local engine: text generation by a model of this process."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar

from torch import nn

from redistill.contracts import BatchSize, Engine, EngineCapabilities, EngineTools, Generation, GenerationRequest, Sampling
from redistill.errors import check_field
from redistill.generation.generate import generate
from redistill.generation.prefix import PrefixMemory, memory_limit
from redistill.interfaces import Autocast
from redistill.models.families import head
from redistill.models.static_cache import DecoderKind, StaticBodies

LOCAL = EngineCapabilities(mixture=True, no_repeat_ngram=True, prefix_memory=True, deterministic=True, replacement=True)


@dataclass(frozen=True, kw_only=True)
class LocalEngineConfig:
    """Generates text with the student itself, in this process.

    This is the configuration of `LocalEngine` in a recipe; `build` creates the engine.

    Args:
        ahead: Number of updates whose text is generated at once, in [1, 1024].  The text of an update is
            then generated with weights that are up to `ahead` - 1 updates old.
        decoder: How tokens are computed one after another.  With "static", the KV cache has a fixed size, and stays allocated
            between updates.  "compiled" has the same cache, and also compiles the computation of a token; on a GPU it records
            a CUDA graph.  If None, the cache grows with the text.
        max_staleness: Largest accepted age, in updates, of the weights that generate text, >= 0.  If None, the limit is 15 for
            objectives whose only divergence is forward KL or skew forward KL, and 3 for others.

    Raises:
        ConfigError: a number is out of range.

    Example:
        >>> LocalEngineConfig().capabilities.mixture, LocalEngineConfig().capabilities.logprobs
        (True, False)
    """

    kind: ClassVar[str] = "local"
    capabilities: ClassVar[EngineCapabilities] = LOCAL

    ahead: int = 1
    decoder: DecoderKind | None = None
    max_staleness: int | None = None

    def __post_init__(self) -> None:
        check_field(self, "ahead", 1 <= self.ahead <= 1024, "must lie in [1, 1024]; 1 is usual")
        is_valid = self.max_staleness is None or self.max_staleness >= 0
        check_field(self, "max_staleness", is_valid, "must be >= 0, or null for the limit of the method")

    @property
    def interval(self) -> int:
        """Number of updates from one generation of text to the next."""
        return self.ahead

    def build(self, tools: EngineTools) -> "LocalEngine":
        """Create the run's engine; the engine generates text with `tools.student`."""
        return LocalEngine(
            tools.student,
            teacher=tools.teacher,
            vocabulary=tools.vocabulary,
            end_ids=tools.end_ids,
            pad_id=tools.pad_id,
            batch_size=tools.batch_size,
            autocast=tools.autocast,
            note=tools.note,
            decoder=self.decoder,
        )


@dataclass(eq=False)
class LocalEngine:
    """Generates text with a model of this process (contracts.Engine).

    Args:
        model: A causal language model.
        teacher: The teacher, for text with tokens of the teacher (`Sampling.uses_teacher`); None if no policy uses such text.
        vocabulary: Only token ids below this number are sampled; None allows all.
        end_ids: Tokens that end a text.
        pad_id: Token id that pads short prompts.
        batch_size: Number of sequences per batch.  If a call runs out of memory, it is retried with a smaller number.
        autocast: Function that returns the autocast context in which the models run.
        note: Function that prints one line to the user.  It is called once if the prefix memory was too small,
            and once if the model cannot have a KV cache of fixed size.
        decoder: See `LocalEngineConfig`.

    Attributes:
        memory: The prefix memory, which has the states of texts that were read or generated inside the context
            `remembering`.  Outside this context it is None.

    Raises:
        TrainingError: a batch of one sequence runs out of memory; the model's probabilities are not finite.

    Example:
        >>> from redistill.models.initialise import fresh_model
        >>> from redistill.processes.memory import Halving
        >>> model = fresh_model(dict(model_type="gpt2", vocab_size=8, n_embd=4, n_layer=1, n_head=1, n_positions=8), seed=1)
        >>> engine = LocalEngine(model, vocabulary=8, end_ids=(0,), pad_id=0, batch_size=Halving("batch_size", 4))
        >>> request = GenerationRequest(prompt_ids=(5, 6), max_new_tokens=3, seed=1, stream=("response", 0, 0))
        >>> (generation,) = engine.generate([request], Sampling(temperature=0.0))
        >>> 1 <= len(generation.token_ids) <= 3
        True
    """

    capabilities: ClassVar[EngineCapabilities] = LOCAL
    model: nn.Module
    _: KW_ONLY
    teacher: nn.Module | None = None
    vocabulary: int | None
    end_ids: Sequence[int]
    pad_id: int
    batch_size: BatchSize
    autocast: Autocast = nullcontext
    note: Callable[[str], None] | None = None
    decoder: DecoderKind | None = None
    memory: PrefixMemory | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._static = None if self.decoder is None else StaticBodies(self.decoder, self.note)

    def sync(self, student: nn.Module, step: int) -> None:
        """Do nothing: the engine generates with the student's own weights."""

    def generate(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> list[Generation]:
        """Continue every request; the results are in the order of the requests.

        The call is retried with a smaller batch size when memory runs out.
        """
        with self.autocast():
            return self.batch_size.repeat(
                lambda size: generate(
                    self.model,
                    requests,
                    sampling,
                    end_ids=self.end_ids,
                    pad_id=self.pad_id,
                    batch_size=size,
                    vocabulary=self.vocabulary,
                    teacher=self.teacher,
                    memory=self.memory,
                    static=self._static,
                )
            )

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """Context with a prefix memory, so that the states of texts are stored and reused.

        The states of a prefix (keys, values and hidden states) are reused for later texts with the same prefix.  The weights
        must not change inside the context.
        """
        self.memory = memory = PrefixMemory(memory_limit(head(self.model).weight_VD.device))
        try:
            yield
        finally:
            self.memory = None
            if self.note is not None and memory.report("student", self.note):
                self.note = None


class MeteredEngine:
    """Wraps an engine and counts the tokens that it generates.

    Args:
        engine: The engine.
        count: Function that is called after each `generate` with the number of generated tokens.

    Example:
        >>> from redistill.testing.fixture import make_fixture  # two random models of a few thousand parameters
        >>> counts = []
        >>> engine = MeteredEngine(make_fixture().tools.engine, counts.append)
        >>> request = GenerationRequest(prompt_ids=(5, 6), max_new_tokens=3, seed=1, stream=("response", 0, 0))
        >>> counts == [len(each.token_ids) for each in engine.generate([request], Sampling())]
        True
    """

    def __init__(self, engine: Engine, count: Callable[[int], None]) -> None:
        self.engine, self._count = engine, count

    @property
    def capabilities(self) -> EngineCapabilities:
        """The features of the wrapped engine, such as sampling from a mixture."""
        return self.engine.capabilities

    def sync(self, student: nn.Module, step: int) -> None:
        """Update the wrapped engine to the weights of the student."""
        self.engine.sync(student, step)

    def generate(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> list[Generation]:
        """Return the results of the wrapped engine, and count the generated tokens."""
        generations = self.engine.generate(requests, sampling)
        self._count(sum(len(generation.token_ids) for generation in generations))
        return generations
