"""The vLLM engine: vLLM generates the student's text.

vLLM runs on servers, or on the machine of this process.  `generation.vllm_weights` transfers the student's weights to vLLM
after an update, and verifies the transfer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

from torch import nn

from redistill.contracts import EngineCapabilities, EngineTools, Generation, GenerationRequest, Sampling
from redistill.errors import ConfigError, ServerError, ServerUnavailableError, check_field
from redistill.generation.local import LocalEngineConfig
from redistill.generation.vllm_backend import Backend
from redistill.generation.vllm_colocated import ColocatedConfig, ColocatedVllm
from redistill.generation.vllm_weights import RESUME, ServedWeights
from redistill.interfaces import CausalModel
from redistill.processes import signals
from redistill.servers.client import Report
from redistill.servers.connection import check_settings, connection, destinations
from redistill.servers.vllm import VllmServers
from redistill.storage.paths import expanded

_TRIES = 3
"""Maximum number of requests for the same texts; they are repeated if a server lost the weights or sent invalid data."""


@dataclass(frozen=True, kw_only=True)
class VllmEngineConfig:
    """Generates text with vLLM, which receives the student's weights.

    In the mode "server", a server must run vLLM 0.32 or later, with VLLM_SERVER_DEV_MODE=1.  It must serve a model of the
    student's architecture, and be able to read `folder`.  docs/vllm-engine.md has the commands.  Prompts are sent to the
    server.  A server on another machine must be allowed by the option `--allow-host` of the command.

    In the mode "colocated", vLLM must be installed in the environment of redistill, and the run must have one process.

    More than 12 fields: it is a section of a recipe, in which each field is a setting of the user.

    Args:
        mode: "server" uses servers that are already running.  "colocated" starts vLLM as a child of this process.
        url: Address of the server, such as http://127.0.0.1:8000/v1; or a list of addresses of servers with the same model,
            over which the requests are distributed.  Only for the mode "server", which requires it.
        model: Name of the model, as the server lists it.  Only for the mode "server", which requires it.
        folder: Folder through which vLLM gets the student's weights.  This process writes them to a new subfolder, which is
            removed at the end.  If None, the temporary folder of this machine is used.
        transfer: How the weights get from the folder to a server.  "reload" uses vLLM's own routes.  "extension" uses a class
            of redistill with which the server was started; it keeps a tied head tied.  "restart" writes the weights to the
            subfolder "redistill-student" of `folder`, and waits until the user has restarted the servers from it.
        api_key_env: Name of the environment variable that contains the API key.  If None, no key is sent.
        every: Number of updates from one transfer of the weights to the next, in [1, 1024].  If `ahead` is larger, the weights
            are transferred only every `ahead` updates.  Text is generated with weights that are up to max(every, ahead) - 1
            updates old.
        ahead: Number of updates whose text is generated at once, in [1, 1024].  One of `every` and `ahead` must be a multiple
            of the other.
        max_staleness: Largest accepted age, in updates, of the weights that generate text, >= 0.  If None, the limit is 15 for
            objectives whose only divergence is forward KL or skew forward KL, and 3 for others.
        unsupported: "reject" rejects a recipe that needs text sampled from mixtures of student and teacher.  "local" generates
            such text in this process.
        concurrent_requests: Maximum number of open requests of one process, in [1, 1024].  Only for the mode "server".
        timeout_s: Seconds after which a request without a complete reply is sent again, > 0.  In the mode "colocated", this is
            the limit of one call of vLLM, which generates many texts.  After it, vLLM is killed and started again.
        patience_s: Time limit in seconds for repeated requests and for a restart of the servers, >= 0.  After that, the command
            ends with an error.  The same command resumes the run.  Only for the mode "server".
        tolerance: Upper limit of the mean absolute difference between log-probabilities of vLLM and of the student, in nats,
            >= 0.  If vLLM and the student have float32, the limit is 0.001.  Otherwise it is 3 times the difference that
            bfloat16 causes, but at least 0.001.  After the first transfer, the limit is at most 5 times the first difference
            or 0.001, whichever is larger.
        colocated: Settings of vLLM in the mode "colocated".  If None, the defaults are used.

    Raises:
        ConfigError: a URL or a name is invalid, a number is out of range, or two settings exclude each other.

    Example:
        >>> VllmEngineConfig(url=("http://127.0.0.1:8000/v1",), model="student").capabilities.mixture
        False
        >>> VllmEngineConfig(url=("http://127.0.0.1:8000/v1",), model="student", every=2, ahead=3)
        Traceback (most recent call last):
            ...
        redistill.errors.ConfigError: ahead = 3: must be a multiple or a divisor of every = 2; 1 is usual
    """

    kind: ClassVar[str] = "vllm"

    mode: Literal["server", "colocated"] = "server"
    url: tuple[str, ...] = ()
    model: str = ""
    folder: str | None = None
    transfer: Literal["reload", "extension", "restart"] = "reload"
    api_key_env: str | None = None
    every: int = 1
    ahead: int = 1
    max_staleness: int | None = None
    unsupported: Literal["reject", "local"] = "reject"
    concurrent_requests: int = 64
    timeout_s: float = 600.0
    patience_s: float = 900.0
    tolerance: float = 0.05
    colocated: ColocatedConfig | None = None

    def __post_init__(self) -> None:
        if self.mode == "server":
            check_settings(self, usual_concurrent=64)
            check_field(self, "colocated", self.colocated is None, "must be null in the mode server")
        else:
            for name in ("url", "model", "api_key_env"):
                check_field(self, name, not getattr(self, name), "must not be set in the mode colocated, which uses no server")
            check_field(self, "transfer", self.transfer == "reload", "must be 'reload' in the mode colocated")
            for name in ("concurrent_requests", "patience_s"):
                is_default = getattr(self, name) == getattr(VllmEngineConfig, name)
                check_field(self, name, is_default, "must not be set in the mode colocated, where it has no effect")
            check_field(self, "timeout_s", 0 < self.timeout_s < math.inf, "must be > 0 and finite")
        check_field(self, "folder", self.folder is None or bool(self.folder.strip()), "must be a folder, or null")
        if self.transfer == "restart" and self.folder is None:
            raise ConfigError("transfer = 'restart': needs a folder from which the servers are restarted; set engine.folder")
        is_valid = self.max_staleness is None or self.max_staleness >= 0
        check_field(self, "max_staleness", is_valid, "must be >= 0, or null for the limit of the method")
        for name in ("every", "ahead"):
            check_field(self, name, 1 <= getattr(self, name) <= 1024, "must lie in [1, 1024]; 1 is usual")
        longer, shorter = max(self.every, self.ahead), min(self.every, self.ahead)
        check_field(
            self, "ahead", longer % shorter == 0, f"must be a multiple or a divisor of every = {self.every}; 1 is usual"
        )
        check_field(self, "tolerance", 0 <= self.tolerance < math.inf, "must be >= 0 and finite")

    @property
    def capabilities(self) -> EngineCapabilities:
        """The features of the engine.

        Mixtures of student and teacher are supported only if `unsupported` is "local", and log-probabilities only if it is
        "reject".
        """
        return EngineCapabilities(
            mixture=self.unsupported == "local", no_repeat_ngram=True, logprobs=self.unsupported == "reject", deterministic=True
        )

    @property
    def interval(self) -> int:
        """Number of updates from one transfer of the weights to the next."""
        return max(self.every, self.ahead)

    def connect(self, note: Report) -> Backend:
        """Return a client of vLLM, without sending a request.

        Args:
            note: Function that is called with one line when a request is sent again.

        Raises:
            ConfigError: a server is not allowed, or the variable of the API key is not set.
        """
        if self.mode == "colocated":
            return ColocatedVllm(self.colocated or ColocatedConfig(), self.timeout_s)
        found = connection(self, "engine", note)
        return VllmServers(found.servers, self.model, key=found.key, limits=found.limits, report=found.report)

    def announcement(self) -> str:
        """Return one line about the data that are sent.

        The line names the data, the servers that receive them, and the environment variable of the API key.
        """
        if self.mode == "colocated":
            return "engine: vLLM runs on this machine; no data are sent to a server"
        return f"engine: training data (token ids of prompts) {destinations(self)}"

    def build(self, tools: EngineTools) -> "VllmEngine":
        """Create the engine; no request is sent before the first transfer of weights.

        Args:
            tools: The objects of the run from which an engine is built.
        """
        return VllmEngine(self, self.connect(tools.note), tools)


class VllmEngine:
    """Generates text with vLLM (contracts.Engine).

    A server that was restarted during a run has lost the student's weights.  The engine detects this after each call of
    `generate`, loads the weights again, and requests the texts again with the same seeds.

    Args:
        settings: The settings of the engine in the recipe.
        backend: The servers, or vLLM on this machine.
        tools: The objects that engines are built from.

    Attributes:
        synced_step: Step of the weights in vLLM: the number of updates that were finished when these weights were
            transferred.  None before the first transfer.
    """

    def __init__(self, settings: VllmEngineConfig, backend: Backend, tools: EngineTools) -> None:
        self.capabilities = settings.capabilities
        self.synced_step: int | None = None
        self._settings, self._backend, self._tools = settings, backend, tools
        self._local = LocalEngineConfig().build(tools) if settings.unsupported == "local" else None
        folder = None if settings.folder is None else expanded(settings.folder)
        self._weights = ServedWeights(
            backend,
            tools,
            folder=folder,
            tolerance=settings.tolerance,
            route=settings.transfer,
            takes_adapters=settings.mode == "server",
            patience_s=settings.patience_s,
        )
        self._has_generated = self._has_ban = False

    def sync(self, student: nn.Module, step: int) -> None:
        """Transfer the student's weights to vLLM if a transfer is due.

        After a transfer, the log-probabilities of vLLM and student are compared.  Every process must call this method; the
        main process transfers the weights.

        Raises:
            ServerError: the log-probabilities differ after the first transfer, or a server cannot load the weights.
            ServerUnavailableError: a server cannot be reached, or the log-probabilities differ after a later transfer.
        """
        if self.synced_step is None or step % self._settings.interval == 0:
            self._weights.transfer(cast(CausalModel, student))
            self.synced_step = step

    def generate(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> list[Generation]:
        """Return the continuation of every request, in the order of the requests.

        Each request has its own seed.  The log-probabilities of the tokens are computed before temperature, top-k, top-p and
        n-gram bans are applied.

        After the texts, the weights in vLLM are compared with those of the last transfer.  Texts of other weights are
        requested again.  With several processes, the weights are also compared before the texts.  If a request was lost in
        between, all texts are requested again: a server may have been restarted, and another process may have loaded the
        weights again.

        Raises:
            ConfigError: `sampling` requires a mixture of student and teacher, and the setting `unsupported` is not "local".
            ServerError: a server rejected the first requests of this process, or does not ban n-grams.
            ServerUnavailableError: a server cannot be reached, or its replies are invalid after all repetitions.
        """
        if sampling.teacher_share:
            if self._local is None:
                raise ConfigError("engine.kind = 'vllm': cannot sample from mixtures; set engine.unsupported to local")
            return self._local.generate(requests, sampling)
        if not requests:
            return []
        if sampling.no_repeat_ngram and not self._has_ban:
            self._backend.check_ban(self._weights.model, self._tools.vocabulary)
            self._has_ban = True
        fault, has_peers = "requests or the student's weights were lost several times", signals.num_processes() > 1
        for _ in range(_TRIES):
            if has_peers:
                self._weights.restore()
            before = self._backend.num_lost
            try:
                texts = self._continuations(requests, sampling)
            except ServerUnavailableError:
                raise
            except ServerError as error:
                if not self._has_generated:
                    raise
                fault = str(error)
                self._tools.note(f"engine: {fault}; the texts are requested again")
                self._weights.restore()
                continue
            is_unsafe = has_peers and self._backend.num_lost > before
            if not self._weights.restore() and not is_unsafe:
                self._has_generated = True
                return texts
        raise ServerUnavailableError(f"engine: {fault}; {RESUME}")

    def _continuations(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> list[Generation]:
        return self._backend.generate(
            self._weights.model,
            requests,
            sampling,
            end_ids=self._tools.end_ids,
            vocabulary=self._tools.vocabulary,
            has_logprobs=self.capabilities.logprobs,
        )
