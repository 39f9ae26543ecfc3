"""Transfer of a student's weights to vLLM servers.

All calls whose form depends on the version of vLLM are in this file.  These calls need a server that was started with the
environment variable VLLM_SERVER_DEV_MODE=1.  This variable opens routes that change the server, so other users must not be
able to reach the server.

A reply with status 200 does not prove that a server uses the new weights.  When vLLM 0.32 on a CPU reloads weights, it keeps
its prefix cache (stored states of earlier prompts). If the head of the model is tied to the input embedding, it also keeps the
old head. Therefore the caller compares the log-probabilities of the server with those of the student after each transfer.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from redistill.contracts import Generation, GenerationRequest, Sampling
from redistill.errors import ConfigError, ServerError, ServerUnavailableError
from redistill.records import Json
from redistill.servers.address import Address
from redistill.servers.client import Client, Limits, Report, Request
from redistill.servers.completions import (
    NGRAM_FIELD,
    REPLY_BYTES,
    InvalidReplyError,
    checked,
    next_request,
    parse_next,
    parse_text,
    parse_text_logprobs,
    served_model,
    text_request,
)

OLDEST, TESTED = (0, 32), "0.32"
ADAPTER = "redistill-student"
"""Name under which the student's adapters are loaded on the servers."""
EXTENSION = "redistill.generation.vllm_worker.HeadReloader"
"""The class that vLLM adds to its workers for the route "extension"."""
RELOAD_METHOD = "redistill_reload"
"""The method of this class that loads weights from a folder."""
_VERSION = re.compile(r"([0-9]{1,4})\.([0-9]{1,4})([.+a-z0-9]{0,80})", re.ASCII)
_REMEDY = "start the server with VLLM_SERVER_DEV_MODE=1"
_ADAPTER_REMEDY = (
    f"{_REMEDY}, VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, --enable-lora and --max-lora-rank of student.lora.rank or more"
)


Route = Literal["adapter", "reload", "extension", "restart"]
"""How weights get from a folder to a vLLM server.

"adapter" loads the adapters in the folder; the other routes load all weights.  "reload" calls vLLM's own function.
"extension" calls a function of redistill in the worker processes of vLLM.  "restart" sends no request: somebody else restarts
the server from the folder.
"""

Precision = Literal["float32", "half"] | None
"""Precision of vLLM's computation: "half" for bfloat16 and float16; None if it is not known, or if weights are quantised."""
_PRECISIONS: Mapping[str, Precision] = {"float32": "float32", "bfloat16": "half", "float16": "half"}


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A folder from which vLLM loads the student's weights.

    Args:
        folder: The folder.  The servers must be able to read it under this path.
        route: How the weights get from the folder to the servers.
    """

    folder: Path
    route: Route


class VllmServers:
    """One vLLM server, or several with the same model.

    Args:
        servers: Addresses of the servers, with the path of the API, such as /v1.
        model: Name of the model, as the servers list it.
        key: API key; None if the servers need none.
        limits: Limits of requests.
        report: Function that is called with one line when a request is sent again.

    Attributes:
        remedy: What to do if the log-probabilities differ after the first transfer.

    Raises:
        ConfigError: this process may not connect to a server.
    """

    remedy = (
        "start the server with the base model of the adapters, or with the folder of `redistill export MODEL --to vllm`; if "
        "the server has a dtype of lower precision, start it with --dtype float32"
    )

    def __init__(self, servers: Sequence[Address], model: str, *, key: str | None, limits: Limits, report: Report) -> None:
        self.client = Client(servers, key=key, limits=limits, report=report)
        roots = [replace(server, path=server.path.removesuffix("/v1")) for server in servers]
        self._admin = Client(roots, key=key, limits=limits, report=report)
        self.model = model

    @property
    def labels(self) -> list[str]:
        """The name of each server in messages, such as "server 127.0.0.1:8000"."""
        return [server.label for server in self.client.servers]

    @property
    def num_lost(self) -> int:
        """Number of failed requests; see `Client.num_lost`."""
        return self.client.num_lost

    def precision(self) -> Precision:
        """Return the lowest precision of the servers.

        The result is None if a server does not report its precision, which it does with VLLM_SERVER_DEV_MODE=1 only.

        Raises:
            ServerUnavailableError: a server cannot be reached.
        """
        found = set[Precision]()
        for number, _ in enumerate(self.client.servers):
            try:
                config = self._config(number)
            except ServerUnavailableError:
                raise
            except ServerError:
                return None
            model = config.get("model_config")
            dtype = model.get("dtype") if isinstance(model, dict) else None
            if not isinstance(model, dict) or not isinstance(dtype, str) or model.get("quantization") is not None:
                return None
            found.add(_PRECISIONS.get(dtype.removeprefix("torch.")))
        return None if None in found else "half" if "half" in found else "float32"

    def check(self, longest: int, report: Report) -> int | None:
        """Check version, model and length limit of every server.

        Args:
            longest: Maximum number of tokens of a text of the run, prompt and answer together.
            report: Function that is called with one line for each server whose version of vLLM was not tested.

        Returns:
            The smallest length limit of the servers in tokens; None if no server states a limit.

        Raises:
            ConfigError: the length limit of a server is below `longest`.
            ServerError: a server lacks the model, is not vLLM, or is too old.
            ServerUnavailableError: a server cannot be reached.
        """
        limits = list[int]()
        for number, server in enumerate(self.client.servers):
            check_version(self._version(number), server.label, report)
            (reply,) = self.client.exchange([Request("/models", None, REPLY_BYTES, number, is_pinned=True)])
            with checked(reply) as value:
                found = served_model(value, self.model)
            limit = found.get("max_model_len", "")
            if limit.isdecimal():
                limits.append(int(limit))
            if limits and limits[-1] < longest:
                raise ConfigError(
                    f"prompt_tokens + response_tokens = {longest}: the model of {server.label} has {limit} positions; lower "
                    "one of the two limits, or start the server with a larger --max-model-len"
                )
        return min(limits, default=None)

    def load(self, weights: Loaded) -> str:
        """Let every server load weights and discard its prefix cache.

        Nothing is sent for the route "restart".

        Returns:
            The name of the model with these weights on the servers.

        Raises:
            ServerError: a server lacks a route, or cannot load the weights.
            ServerUnavailableError: a server cannot be reached.
        """
        if weights.route == "restart":
            return self.model
        folder = str(weights.folder)
        if weights.route == "adapter":
            body: Mapping[str, Json] = {"lora_name": ADAPTER, "lora_path": folder, "load_inplace": True}
            self._post(self.client, "/load_lora_adapter", body, _ADAPTER_REMEDY)
        else:
            if weights.route == "extension":
                self._check_extension()
            method = RELOAD_METHOD if weights.route == "extension" else "reload_weights"
            call: Mapping[str, Json] = {"method": method, "kwargs": {"weights_path": folder}}
            self._post(self._admin, "/collective_rpc", call, _REMEDY)
        self._post(self._admin, "/reset_prefix_cache", {}, _REMEDY)
        return ADAPTER if weights.route == "adapter" else self.model

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

        Args:
            model: Name of the model on the servers.
            requests: The prompts, each with the key of its random numbers.
            sampling: How tokens are sampled.
            end_ids: Tokens that end a text.
            vocabulary: Number of token ids; a text with another id is invalid.
            has_logprobs: Whether each continuation has the log-probabilities of its tokens.

        Raises:
            ServerError: a reply is invalid, or a server rejected a request.
            ServerUnavailableError: a server cannot be reached.
        """
        sent = [
            text_request(model, request, sampling, end_ids, number, logprobs=has_logprobs)
            for number, request in enumerate(requests)
        ]
        texts = list[Generation]()
        for request, reply in zip(requests, self.client.exchange(sent), strict=True):
            with checked(reply) as value:
                text = parse_text(value, request, end_ids, vocabulary)
                logprobs = parse_text_logprobs(value, len(text.token_ids)) if has_logprobs else None
            texts.append(replace(text, logprobs=logprobs))
        return texts

    def next_logprobs(
        self, model: str, prompts: Sequence[Sequence[int]], *, top_k: int, vocabulary: int
    ) -> list[list[dict[int, float]]]:
        """Return the log-probabilities of the most probable next tokens.

        The servers may use their prefix caches.

        Returns:
            One list for each server. It has one dict for each prompt, which maps token ids to log-probabilities in nats.

        Raises:
            ServerError: a reply is invalid, or a server rejected a request.
            ServerUnavailableError: a server cannot be reached.
        """
        numbers = range(len(self.client.servers))
        requests = [next_request(model, prompt, top_k=top_k, server=number) for number in numbers for prompt in prompts]
        rows = list[dict[int, float]]()
        for reply in self.client.exchange(requests):
            with checked(reply) as value:
                rows.append(parse_next(value, top_k=top_k, vocabulary=vocabulary)[1])
        return [rows[number * len(prompts) : (number + 1) * len(prompts)] for number in numbers]

    def check_ban(self, model: str, vocabulary: int) -> None:
        """Check that every server can ban repeated n-grams.

        A server without redistill's plugin ignores the field of a request for the ban.  Therefore each server is tested with a
        prompt of one token.  A logit bias makes this token the most probable next token, and a ban of repeated 1-grams excludes
        it. A server that returns the token does not apply bans.

        Raises:
            ServerError: a server returned the banned token.
            ServerUnavailableError: a server cannot be reached.
        """
        token = vocabulary // 2
        extra: Mapping[str, Json] = {"logit_bias": {str(token): 100.0}, "vllm_xargs": {NGRAM_FIELD: 1}}
        numbers = range(len(self.client.servers))
        requests = [next_request(model, [token], top_k=1, server=number, extra=extra) for number in numbers]
        for reply in self.client.exchange(requests):
            with checked(reply) as value:
                if parse_next(value, top_k=1, vocabulary=vocabulary)[0] == token:
                    raise ServerError(
                        f"{reply.server}: does not ban repeated n-grams; install redistill in the environment of the server "
                        "(pip install --no-deps redistill) and restart it, or set no_repeat_ngram to 0"
                    )

    def _check_extension(self) -> None:
        """Raise a ServerError if a server was started without the class `EXTENSION`."""
        for number, server in enumerate(self.client.servers):
            try:
                parallel = self._config(number).get("parallel_config")
            except ServerUnavailableError:
                raise
            except ServerError as error:
                raise ServerError(f"{error}; the request was /server_info: {_REMEDY}") from error
            if not isinstance(parallel, dict) or parallel.get("worker_extension_cls") != EXTENSION:
                raise ServerError(
                    f"{server.label}: was started without the worker extension of redistill; start it with "
                    f"--worker-extension-cls {EXTENSION}, or set engine.transfer to reload"
                )

    def _config(self, number: int) -> Mapping[str, Json]:
        """Return vLLM's configuration of a server; an empty dict if the reply has none.

        Raises:
            ServerError: the server does not have the route, which needs VLLM_SERVER_DEV_MODE=1.
            ServerUnavailableError: the server cannot be reached.
        """
        request = Request("/server_info?config_format=json", None, REPLY_BYTES, number, is_pinned=True)
        (reply,) = self._admin.exchange([request])
        found = reply.value.get("vllm_config") if isinstance(reply.value, dict) else None
        return found if isinstance(found, dict) else {}

    def _version(self, number: int) -> str:
        """Return the version of vLLM on a server.

        Raises:
            ServerError: the server is not vLLM.
        """
        (reply,) = self._admin.exchange([Request("/version", None, REPLY_BYTES, number, is_pinned=True)])
        with checked(reply) as value:
            version = value.get("version") if isinstance(value, dict) else None
            if not isinstance(version, str) or not _VERSION.fullmatch(version):
                raise InvalidReplyError("/version has no version of vLLM; the engine vllm needs a vLLM server")
        return version

    def _post(self, client: Client, path: str, body: Mapping[str, Json], remedy: str) -> None:
        """Send a request to every server; the content of the replies is ignored.

        Raises:
            ServerError: a server rejected the request; the message ends with `remedy`.
            ServerUnavailableError: a server cannot be reached.
        """
        numbers = range(len(client.servers))
        try:
            client.exchange([Request(path, body, REPLY_BYTES, number, is_pinned=True, has_json=False) for number in numbers])
        except ServerUnavailableError:
            raise
        except ServerError as error:
            raise ServerError(f"{error}; the request was {path}: {remedy}") from error


def check_version(version: str, label: str, report: Report) -> None:
    """Check that redistill supports a version of vLLM.

    Args:
        version: The version, such as "0.32.0+cpu".
        label: Name of the server in messages.
        report: Function that is called with one line if the version was not tested.

    Raises:
        ServerError: the version is too old, or the text is not a version.

    Example:
        >>> check_version("0.32.0+cpu", "server 127.0.0.1:8000", print)
        >>> check_version("0.31", "server 127.0.0.1:8000", print)
        Traceback (most recent call last):
            ...
        redistill.errors.ServerError: server 127.0.0.1:8000: runs vLLM 0.31; must be 0.32 or later; install a newer version
    """
    found = _VERSION.fullmatch(version)
    if found is None or tuple(map(int, found.groups()[:2])) < OLDEST:
        raise ServerError(f"{label}: runs vLLM {version[:80]}; must be {TESTED} or later; install a newer version")
    if not version.startswith(TESTED):
        report(f"note: {label}: runs vLLM {version}; redistill was tested with {TESTED}")
