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
    served_model,
)

OLDEST, TESTED = (0, 32), "0.32"
ADAPTER = "redistill-student"
"""Name under which the student's adapters are loaded on the servers."""
_VERSION = re.compile(r"([0-9]{1,4})\.([0-9]{1,4})([.+a-z0-9]{0,80})", re.ASCII)
_REMEDY = "start the server with VLLM_SERVER_DEV_MODE=1"
_ADAPTER_REMEDY = (
    f"{_REMEDY}, VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, --enable-lora and --max-lora-rank of student.lora.rank or more"
)


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A folder from which the servers load the student's weights.

    Args:
        folder: The folder.  The servers must be able to read it under this path.
        is_adapter: True if the folder contains adapters in the format of PEFT; False if it contains all weights.
    """

    folder: Path
    is_adapter: bool


class VllmServers:
    """One vLLM server, or several with the same model.

    Args:
        servers: Addresses of the servers, with the path of the API, such as /v1.
        model: Name of the model, as the servers list it.
        key: API key; None if the servers need none.
        limits: Limits of requests.
        report: Function that is called with one line when a request is sent again.

    Raises:
        ConfigError: this process may not connect to a server.
    """

    def __init__(self, servers: Sequence[Address], model: str, *, key: str | None, limits: Limits, report: Report) -> None:
        self.client = Client(servers, key=key, limits=limits, report=report)
        roots = [replace(server, path=server.path.removesuffix("/v1")) for server in servers]
        self._admin = Client(roots, key=key, limits=limits, report=report)
        self.model = model

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
            version = self._version(number)
            if not version.startswith(TESTED):
                report(f"note: {server.label}: runs vLLM {version}; redistill was tested with {TESTED}")
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

        Returns:
            The name of the model with these weights on the servers.

        Raises:
            ServerError: a server lacks a route, or cannot load the weights.
            ServerUnavailableError: a server cannot be reached.
        """
        folder = str(weights.folder)
        if weights.is_adapter:
            body: Mapping[str, Json] = {"lora_name": ADAPTER, "lora_path": folder, "load_inplace": True}
            self._post(self.client, "/load_lora_adapter", body, _ADAPTER_REMEDY)
        else:
            call: Mapping[str, Json] = {"method": "reload_weights", "kwargs": {"weights_path": folder}}
            self._post(self._admin, "/collective_rpc", call, _REMEDY)
        self._post(self._admin, "/reset_prefix_cache", {}, _REMEDY)
        return ADAPTER if weights.is_adapter else self.model

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

    def _version(self, number: int) -> str:
        """Return the version of vLLM on a server.

        Raises:
            ServerError: the server is not vLLM, or its version is too old.
        """
        (reply,) = self._admin.exchange([Request("/version", None, REPLY_BYTES, number, is_pinned=True)])
        with checked(reply) as value:
            version = value.get("version") if isinstance(value, dict) else None
            found = _VERSION.fullmatch(version) if isinstance(version, str) else None
            if found is None:
                raise InvalidReplyError("/version has no version of vLLM; the engine vllm needs a vLLM server")
        if tuple(map(int, found.groups()[:2])) < OLDEST:
            raise ServerError(f"{reply.server}: runs vLLM {found.group()}; must be {TESTED} or later; install a newer version")
        return found.group()

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
