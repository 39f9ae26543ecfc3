"""vLLM on the machine of the process that trains, without a server.

vLLM generates in a child process, which ends with this process.  No port is opened, and no data leave the machine.
"""

import importlib.metadata
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Protocol

from redistill.contracts import Generation, GenerationRequest, Sampling
from redistill.errors import ConfigError, RedistillError, ServerError, check_field, one_line
from redistill.processes import signals
from redistill.processes.timed import TimedCalls
from redistill.records import Json
from redistill.servers.client import Request
from redistill.servers.completions import (
    NGRAM_FIELD,
    InvalidReplyError,
    next_request,
    parse_next,
    parse_text,
    parse_text_logprobs,
    text_request,
)
from redistill.servers.vllm import Loaded, Precision, check_version
from redistill.storage.redaction import plain_line

_REASON = 300  # maximum number of characters of vLLM's text in an error message
_LABEL = "vLLM on this machine"
_SAMPLING = (
    *("n", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed"),
    *("max_tokens", "stop_token_ids", "ignore_eos", "logprobs"),
)
"""Fields of a request that vLLM's class `SamplingParams` has under the same name."""
_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",  # vLLM would send statistics to its authors
    "VLLM_WORKER_MULTIPROCESSING_METHOD": "spawn",  # this process has threads, with which a fork may block
    "VLLM_ENABLE_V1_MULTIPROCESSING": "1",  # a child process, so that vLLM does not change the random state of this one
    "VLLM_LOGGING_LEVEL": "ERROR",
}


@dataclass(frozen=True, kw_only=True)
class ColocatedConfig:
    """Settings of vLLM on the machine of the process that trains.

    Args:
        dtype: dtype of vLLM's copy of the weights.
        memory_fraction: Fraction of the GPU's memory that vLLM may use, in (0, 1).  It has no effect on a CPU, where the
            variable VLLM_CPU_KVCACHE_SPACE sets the GiB of stored states.
        positions: Maximum number of tokens of a text, prompt and answer together.  If None, the limit of the model is used,
            which may need more memory than is available.

    Raises:
        ConfigError: a number is out of range.

    Example:
        >>> ColocatedConfig().dtype
        'bfloat16'
    """

    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    memory_fraction: float = 0.3
    positions: int | None = None

    def __post_init__(self) -> None:
        check_field(self, "memory_fraction", 0 < self.memory_fraction < 1, "must lie in (0, 1); 0.3 is usual")
        check_field(self, "positions", self.positions is None or self.positions >= 1, "must be >= 1, or null")


class TextOutput(Protocol):
    """The part of vLLM's class `RequestOutput` that redistill uses.

    Its attribute `outputs` has one text.
    """

    @property
    def outputs(self) -> Sequence["CompletionOutput"]: ...


class CompletionOutput(Protocol):
    """The part of vLLM's class `CompletionOutput` that redistill uses: a text.

    `logprobs` contains a mapping for each token of the text.  A mapping maps token ids to objects with an attribute `logprob`.
    """

    @property
    def token_ids(self) -> Sequence[int]: ...

    @property
    def logprobs(self) -> Sequence[Mapping[int, "Logprob"]] | None: ...


class Logprob(Protocol):
    """The part of vLLM's class `Logprob` that redistill uses."""

    @property
    def logprob(self) -> float: ...


class InProcessModel(Protocol):
    """The part of vLLM's class `LLM` that redistill uses."""

    def generate(
        self, prompts: Sequence[Mapping[str, object]], sampling_params: Sequence[object], *, use_tqdm: bool
    ) -> Sequence[TextOutput]:
        """Return the text of every prompt, in the order of the prompts."""

    def collective_rpc(self, method: str, *, kwargs: Mapping[str, str]) -> object:
        """Call a method of all workers."""

    def reset_prefix_cache(self) -> bool:
        """Discard stored states of earlier prompts; return False if some are in use."""


class Package(Protocol):
    """The part of the package vllm that redistill uses."""

    def LLM(self, **settings: object) -> InProcessModel:
        """Load a model."""

    def SamplingParams(self, **settings: object) -> object:
        """Return the sampling settings of a text."""


def import_vllm() -> Package:
    """Import the package vllm, which takes many seconds.

    Before the import, environment variables of vLLM are set to the values that redistill needs, unless they are already set.

    Raises:
        ConfigError: the package cannot be imported.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import vllm
    except ImportError as error:
        raise ConfigError(
            f"engine.mode = 'colocated': the package vllm cannot be imported ({one_line(error)}); install it in the "
            "environment of redistill, or set engine.mode to server"
        ) from error
    package: Package = vllm
    return package


class ColocatedVllm:
    """A model that vLLM runs on this machine (generation.vllm_backend.Backend).

    vLLM is started when weights are loaded for the first time.  If vLLM fails, the next load of weights starts it again.

    Args:
        settings: Settings of vLLM.
        timeout_s: Seconds after which a call of vLLM has failed, > 0.  The child process is then killed.

    Attributes:
        model: "student"; vLLM has one model, without adapters.
        labels: The name of vLLM in messages, as a sequence of length 1.
        remedy: What to do if the log-probabilities differ after the first transfer.
        num_lost: 0; a request that fails is an error, and is not sent again by this class.
    """

    model = "student"
    labels = (_LABEL,)
    remedy = "set engine.colocated.dtype to float32"
    num_lost = 0

    def __init__(self, settings: ColocatedConfig, timeout_s: float) -> None:
        self._settings, self._calls = settings, TimedCalls(timeout_s)
        self._package: Package | None = None
        self._llm: InProcessModel | None = None

    def precision(self) -> Precision:
        """Return the precision of the setting `dtype`."""
        return "float32" if self._settings.dtype == "float32" else "half"

    def check(self, longest: int, report: Callable[[str], None]) -> int | None:
        """Check version and length limit of vLLM, and the number of processes.

        Args:
            longest: Maximum number of tokens of a text, prompt and answer together.
            report: Function that is called with one line if redistill was not tested with this version.

        Returns:
            The setting `positions`.

        Raises:
            ConfigError: vLLM is not installed, there are several processes, or the length limit is below `longest`.
            ServerError: the version of vLLM is too old.
        """
        if signals.num_processes() > 1:
            raise ConfigError(
                "engine.mode = 'colocated': needs a run with one process; start one process, or set engine.mode to server"
            )
        try:
            version = importlib.metadata.version("vllm")
        except importlib.metadata.PackageNotFoundError as error:
            raise ConfigError(
                "engine.mode = 'colocated': the package vllm is not installed; install it in the environment of redistill, or "
                "set engine.mode to server"
            ) from error
        check_version(version, _LABEL, report)
        positions = self._settings.positions
        if positions is not None and positions < longest:
            raise ConfigError(
                f"engine.colocated.positions = {positions}: must be at least prompt_tokens + response_tokens = {longest}"
            )
        return positions

    def load(self, weights: Loaded) -> str:
        """Load weights, and discard stored states of earlier prompts.

        Returns:
            The name of the model.

        Raises:
            ConfigError: vLLM cannot be imported.
            ServerError: vLLM cannot be started, or cannot load the weights.
            Interrupted: a signal arrived.
        """
        with self._failures():
            if self._llm is None:
                with self._calls.children():
                    self._llm = self._start(str(weights.folder))
            else:
                reload = partial(self._llm.collective_rpc, "reload_weights", kwargs={"weights_path": str(weights.folder)})
                self._calls.run(reload)
            self._calls.run(self._llm.reset_prefix_cache)
        return self.model

    def next_logprobs(
        self, model: str, prompts: Sequence[Sequence[int]], *, top_k: int, vocabulary: int
    ) -> list[list[dict[int, float]]]:
        """Return the log-probabilities of the most probable next tokens.

        Returns:
            A list of one list. It has one dict for each prompt, which maps token ids to log-probabilities in nats.

        Raises:
            ServerError: vLLM failed, or returned invalid values.
            Interrupted: a signal arrived.
        """
        found = self._run([next_request(model, prompt, top_k=top_k, server=0) for prompt in prompts])
        return [[parse_next(reply, top_k=top_k, vocabulary=vocabulary)[1] for reply in found]]

    def check_ban(self, model: str, vocabulary: int) -> None:
        """Check that vLLM can ban repeated n-grams, as `VllmServers.check_ban` does.

        Raises:
            ServerError: vLLM does not ban repeated n-grams, or failed.
            Interrupted: a signal arrived.
        """
        token = vocabulary // 2
        extra: Mapping[str, Json] = {"logit_bias": {str(token): 100.0}, "vllm_xargs": {NGRAM_FIELD: 1}}
        (reply,) = self._run([next_request(model, [token], top_k=1, server=0, extra=extra)])
        if parse_next(reply, top_k=1, vocabulary=vocabulary)[0] == token:
            raise ServerError(
                f"{_LABEL}: does not ban repeated n-grams; install redistill again in this environment, since the ban is a "
                "vLLM plugin of the installed package, or set no_repeat_ngram to 0"
            )

    def generate(
        self,
        model: str,
        requests: Sequence[GenerationRequest],
        sampling: Sampling,
        *,
        end_ids: Sequence[int],
        vocabulary: int,
        has_logprobs: bool,
    ) -> list[Generation]:
        """Return the continuation of every request, in the order of the requests.

        `VllmServers.generate` describes the arguments.

        Raises:
            ServerError: vLLM failed, exceeded the time limit, or returned an invalid text.
            Interrupted: a signal arrived.
        """
        sent = [text_request(model, request, sampling, end_ids, 0, logprobs=has_logprobs) for request in requests]
        texts = list[Generation]()
        for request, reply in zip(requests, self._run(sent), strict=True):
            with self._failures():
                text = parse_text(reply, request, end_ids, vocabulary)
                logprobs = parse_text_logprobs(reply, len(text.token_ids)) if has_logprobs else None
            texts.append(replace(text, logprobs=logprobs))
        return texts

    def _start(self, folder: str) -> InProcessModel:
        """Start vLLM with the model in a folder."""
        self._package = import_vllm()
        limit = {} if self._settings.positions is None else {"max_model_len": self._settings.positions}
        return self._package.LLM(
            model=folder,
            dtype=self._settings.dtype,
            gpu_memory_utilization=self._settings.memory_fraction,
            skip_tokenizer_init=True,
            generation_config="vllm",  # the model's own defaults of sampling are not used
            **limit,
        )

    def _run(self, requests: Sequence[Request]) -> list[Json]:
        """Run vLLM on the requests; return replies in the format of a vLLM server."""
        with self._failures():
            if self._llm is None or self._package is None:
                raise ServerError(f"{_LABEL}: is not running")
            bodies = [request.body or {} for request in requests]
            prompts = [{"prompt_token_ids": body["prompt"]} for body in bodies]
            params = [self._package.SamplingParams(**_sampling(body)) for body in bodies]
            outputs = self._calls.run(partial(self._llm.generate, prompts, params, use_tqdm=False))
            if len(outputs) != len(requests):
                raise InvalidReplyError(f"{len(outputs)} texts for {len(requests)} prompts")
            return [_reply(output) for output in outputs]

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Context that converts an exception of vLLM to a ServerError.

        If the cause is not an invalid reply, the next load of weights starts vLLM again.
        """
        try:
            yield
        except RedistillError:
            raise
        except InvalidReplyError as error:
            raise ServerError(f"{_LABEL}: invalid reply: {error}") from error
        except Exception as error:
            self._llm = None
            self._calls.kill()
            signals.poll()  # the signal that ends this process may have ended vLLM as well
            advice = "; raise engine.timeout_s if the texts need more time" if isinstance(error, TimeoutError) else ""
            raise ServerError(f"{_LABEL}: failed ({plain_line(one_line(error))[:_REASON]}){advice}") from error


def _sampling(body: Mapping[str, Json]) -> dict[str, object]:
    """Return the arguments of vLLM's class `SamplingParams` for the body of a request."""
    found: dict[str, object] = {name: body[name] for name in _SAMPLING if name in body}
    if isinstance(bias := body.get("logit_bias"), dict):
        found["logit_bias"] = {int(token): value for token, value in bias.items()}
    return {**found, "extra_args": body.get("vllm_xargs"), "detokenize": False}


def _reply(output: TextOutput) -> Json:
    """Convert a text from vLLM to the format in which a vLLM server replies."""
    (text,) = output.outputs
    token_ids: list[Json] = list(text.token_ids)
    choice: dict[str, Json] = {"token_ids": token_ids}
    if text.logprobs is not None:
        if len(text.logprobs) != len(token_ids):
            raise InvalidReplyError(f"log-probabilities of {len(text.logprobs)} tokens for a text of {len(token_ids)}")
        listed = [{token: each.logprob for token, each in entries.items()} for entries in text.logprobs]
        own: list[Json] = [entries.get(token) for entries, token in zip(listed, text.token_ids)]
        top: list[Json] = [{str(token): logprob for token, logprob in entries.items()} for entries in listed]
        choice["logprobs"] = {"token_logprobs": own, "top_logprobs": top}
    return {"choices": [choice]}
