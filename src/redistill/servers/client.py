"""The HTTP client of servers that a recipe names.

No other module of redistill connects to such a server.  Replies are untrusted.  Their size and time are limited, and compressed
replies are rejected. Redirects are not followed. The proxies that environment variables name are not used.

Requests are asynchronous calls of the library httpx2, which can be cancelled. Therefore a server that sends one byte at a time
cannot exceed the time limit.
"""

import json
import os
import re
import ssl
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import count
from queue import SimpleQueue
from typing import NamedTuple, NoReturn

import anyio
import httpx2
from anyio.from_thread import start_blocking_portal

from redistill.errors import ConfigError, OtherModelError, ServerError, ServerUnavailableError, first_line
from redistill.processes import signals
from redistill.records import Json
from redistill.servers.address import Address, check_allowed
from redistill.storage.json_text import JsonError, parse_json
from redistill.storage.redaction import MASK, names_secret, plain_line

RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504, 529})
"""Status codes of failures that may be temporary."""
_POLL_S = 0.1
_REASON_BYTES = 20_000  # maximum size of the reply to a rejected request
_REASON = 200  # maximum number of characters of server text in an error message
_KEY = re.compile(r"[\x21-\x7e]{8,4096}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}", re.ASCII)

Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of requests.

    Args:
        connect_s: Seconds for a connection, > 0.
        total_s: Seconds from the start of an attempt to the last byte of its reply, > 0.
        attempts: Maximum number of attempts of one request, >= 1; None if only time is limited.
        patience_s: Seconds after which a failed request is not tried again, >= 0.
        first_wait_s: Seconds before the second attempt, >= 0; doubled before each later attempt.
        longest_wait_s: Maximum seconds between two attempts.
        concurrent: Maximum number of open requests, >= 1.

    Example:
        >>> Limits(patience_s=60.0).connect_s
        10.0
    """

    connect_s: float = 10.0
    total_s: float = 600.0
    attempts: int | None = None
    patience_s: float = 900.0
    first_wait_s: float = 1.0
    longest_wait_s: float = 60.0
    concurrent: int = 8


class Request(NamedTuple):
    """An HTTP request to a server.

    Args:
        path: Path below the address of the server, such as "/completions".
        body: The JSON value that is sent (POST); None for a GET request.
        max_bytes: Maximum size of the reply.
        server: Index of the server, modulo the number of servers.
        is_pinned: True to send all attempts to this server; False to send later attempts to the other servers in turn.
        has_json: True if the reply must be JSON.  If False, the content of the reply is ignored, and `Reply.value` is None.
    """

    path: str
    body: Mapping[str, Json] | None
    max_bytes: int
    server: int = 0
    is_pinned: bool = False
    has_json: bool = True


class Reply(NamedTuple):
    """A reply of a server, parsed as JSON.

    Args:
        value: The JSON value; None for a request with `has_json` = False.
        server: The server, for messages, such as "server 127.0.0.1:8000".
    """

    value: Json
    server: str


class _Content(NamedTuple):
    """The body of a reply, and the server that sent it, as in `Reply`."""

    body: bytes
    server: str


class _FailedAttempt(Exception):
    """An attempt failed, and a later one may succeed.

    Args:
        reason: The reason, for messages.
        wait_s: Seconds to wait before the next attempt, as the server requested.
        is_lost: See `Client.num_lost`.
    """

    def __init__(self, reason: str, wait_s: float = 0.0, *, is_lost: bool = True) -> None:
        super().__init__(reason)
        self.wait_s, self.is_lost = wait_s, is_lost


def api_key(variable: str | None) -> str | None:
    """Return the API key that an environment variable contains.

    If no variable is named, the result is None.

    Raises:
        ConfigError: the variable is not set, or its value is not a key of 8 to 4096 printable ASCII characters.
    """
    if variable is None:
        return None
    value = os.environ.get(variable, "")
    if not value:
        raise ConfigError(f"api_key_env = {variable!r}: the variable is not set; set it to the API key of the server")
    if not _KEY.fullmatch(value):
        raise ConfigError(
            f"api_key_env = {variable!r}: the value of the variable is no API key; it must have 8 to 4096 printable ASCII "
            "characters without spaces"
        )
    return value


def check_variable(variable: str) -> None:
    """Check the name of the environment variable of an API key.

    The name must show that the value is a secret (see `names_secret`), so that the value is masked in all output.

    Raises:
        ConfigError: the name is not that of a secret.

    Example:
        >>> check_variable("TEACHER_API_KEY")
    """
    if not (_VARIABLE.fullmatch(variable) and names_secret(variable)):
        raise ConfigError(
            f"api_key_env = {plain_line(variable)!r}: must be the name of an environment variable that ends in KEY or TOKEN, "
            "such as TEACHER_API_KEY; the key itself must not be in a recipe"
        )


class Client:
    """Sends requests to one server, or to several servers with the same model.

    Attributes:
        num_attempts: Number of attempts so far.
        num_lost: Number of attempts so far for which a server may have been restarted: it did not reply, replied too late, or
            replied with an error of its own (status 5xx).
        report: Function that is called with a line of text when a request is tried again.

    Args:
        servers: Addresses of the servers.
        key: API key, which is sent to these servers only; None if they need none.
        limits: Limits of time, attempts and open requests.
        report: Function that is called with a line of text when a request is tried again.

    Raises:
        ConfigError: this process may not connect to a server (see `check_allowed`).
    """

    def __init__(self, servers: Sequence[Address], *, key: str | None, limits: Limits, report: Report) -> None:
        for server in servers:
            check_allowed(server)
        self.servers, self.report, self.num_attempts, self.num_lost = tuple(servers), report, 0, 0
        self._key, self._limits, self._messages = key, limits, SimpleQueue[str]()
        self._ssl = httpx2.create_ssl_context()

    def exchange(self, requests: Sequence[Request]) -> list[Reply]:
        """Send requests; return the replies, in the order of the requests.

        Raises:
            OtherModelError: a server does not know the model or the path (status 404).
            ServerError: a server rejected a request, or a reply is too large, compressed, a redirect, or not JSON.
            ServerUnavailableError: the limits of attempts or time were reached.
            Interrupted: a signal arrived; open requests are cancelled.
        """
        for server in self.servers:
            check_allowed(server)
        contents = zip(requests, self._run(requests), strict=True)
        return [_parsed(content) if request.has_json else Reply(None, content.server) for request, content in contents]

    def filtered(self, text: str) -> str:
        """Make text that a server sent safe to show in an error message.

        The result is one short line, without terminal escapes and without the API key.
        """
        line = plain_line(text if self._key is None else text.replace(self._key, MASK))
        return line if len(line) <= _REASON else f"{line[:_REASON]}..."

    def _run(self, requests: Sequence[Request]) -> list[_Content]:
        """Send the requests in an event loop of another thread.

        Meanwhile, this thread polls for signals.

        The caller may have an event loop of its own, as in a notebook.
        """
        with start_blocking_portal("asyncio") as portal:
            future: Future[list[_Content]] = portal.start_task_soon(self._exchange, requests)
            try:
                while True:
                    try:
                        return future.result(timeout=_POLL_S)
                    except TimeoutError:
                        if future.done():
                            raise
                    signals.poll()
                    self._print()
            finally:
                future.cancel()
                self._print()

    def _print(self) -> None:
        while not self._messages.empty():
            self.report(self._messages.get())

    async def _exchange(self, requests: Sequence[Request]) -> list[_Content]:
        replies, errors = dict[int, _Content](), list[ServerError]()
        slots = anyio.CapacityLimiter(self._limits.concurrent)
        # No time limit for single reads, since a server sends nothing while it computes; `total_s` limits the attempt.
        timeout = httpx2.Timeout(None, connect=self._limits.connect_s)
        headers = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "redistill"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        async with (
            httpx2.AsyncClient(
                headers=headers, verify=self._ssl, trust_env=False, follow_redirects=False, timeout=timeout
            ) as http,
            anyio.create_task_group() as tasks,
        ):

            async def fetch(index: int) -> None:
                async with slots:
                    try:
                        replies[index] = await self._fetch(http, requests[index])
                    except ServerError as error:
                        errors.append(error)
                        tasks.cancel_scope.cancel()

            for index in range(len(requests)):
                tasks.start_soon(fetch, index)
        if errors:
            raise errors[0]
        return [replies[index] for index in range(len(requests))]

    async def _fetch(self, http: httpx2.AsyncClient, request: Request) -> _Content:
        """Send a request, try it again after temporary failures, and return the reply."""
        limits, end = self._limits, anyio.current_time() + self._limits.patience_s
        for attempt in count(1):
            server = self.servers[(request.server + (0 if request.is_pinned else attempt - 1)) % len(self.servers)]
            self.num_attempts += 1
            try:
                with anyio.fail_after(limits.total_s):
                    return _Content(await self._attempt(http, server, request), server.label)
            except _FailedAttempt as error:
                failed = error
            except TimeoutError:
                failed = _FailedAttempt(f"no complete reply within {limits.total_s:g} s")
            self.num_lost += failed.is_lost
            tries = (attempt - 1) // (1 if request.is_pinned else len(self.servers))
            wait_s = min(max(limits.first_wait_s * 2 ** min(tries, 20), failed.wait_s), limits.longest_wait_s)
            if attempt == limits.attempts or anyio.current_time() + wait_s > end:
                raise ServerUnavailableError(
                    f"{server.label}: {failed}; gave up after {attempt} attempts; check the server, and run the same command "
                    "again to resume"
                )
            if attempt == 1:
                self._messages.put(f"{server.label}: {failed}; the request is tried again for up to {limits.patience_s:g} s")
            await anyio.sleep(wait_s)
        raise AssertionError("unreachable")

    async def _attempt(self, http: httpx2.AsyncClient, server: Address, request: Request) -> bytes:
        method, content = ("GET", None) if request.body is None else ("POST", json.dumps(request.body).encode())
        headers = {} if content is None else {"Content-Type": "application/json"}
        try:
            async with http.stream(method, f"{server}{request.path}", content=content, headers=headers) as reply:
                encoding = reply.headers.get("content-encoding", "identity").strip().lower()
                if encoding not in ("", "identity"):
                    raise ServerError(f"{server.label}: sent a compressed reply, which was not requested; use another server")
                if reply.status_code == 200:
                    return await _body(reply, request.max_bytes, server)
                text = (await _body(reply, _REASON_BYTES, server)).decode("utf-8", errors="replace")
                self._raise_status(server, reply, text)
        except httpx2.LocalProtocolError as error:
            raise ServerError(f"{server.label}: the request is not valid HTTP ({self.filtered(first_line(error))})") from error
        except (httpx2.RequestError, httpx2.StreamError, OSError, ValueError) as error:
            if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in _causes(error)):
                reason = self.filtered(first_line(error))
                raise ServerError(f"{server.label}: its TLS certificate is invalid ({reason}); fix the certificate") from error
            kind = type(error).__name__
            raise _FailedAttempt(f"no valid reply ({self.filtered(f'{kind}: {error}'.rstrip(': '))})") from error

    def _raise_status(self, server: Address, reply: httpx2.Response, text: str) -> NoReturn:
        """Raise the error of a reply whose status code is not 200."""
        status, said = reply.status_code, self.filtered(_message(text))
        where = f"{server.label}: status {status}"
        quoted = f" ({said})" if said else ""
        if status in RETRIED:
            wait_s = _seconds(reply.headers.get("retry-after", ""))
            raise _FailedAttempt(f"status {status}{quoted}", wait_s, is_lost=status >= 500)
        if 300 <= status < 400:
            raise ServerError(f"{where}: is a redirect, which is not followed; set the url to the address of the server itself")
        if status in (401, 403):
            fault = "rejected the API key" if self._key else "needs an API key"
            raise ServerError(f"{where}{quoted}: the server {fault}; set api_key_env to the variable with the API key")
        if status == 404:
            raise OtherModelError(f"{where}{quoted}: no such model or path; check model, and url with its path, such as /v1")
        raise ServerError(f"{where}{quoted}: the server rejected the request; correct the setting that the server names")


def _parsed(content: _Content) -> Reply:
    try:
        return Reply(parse_json(content.body), content.server)
    except JsonError as error:
        raise ServerError(f"{content.server}: its reply is not valid JSON ({error}); check the server") from error


async def _body(reply: httpx2.Response, max_bytes: int, server: Address) -> bytes:
    """Read the body of a reply, without decompression.

    Raises:
        ServerError: the body has more than `max_bytes` bytes.
    """
    length, parts, size = reply.headers.get("content-length", ""), list[bytes](), 0
    is_too_large = length.isascii() and length.isdigit() and int(length[:20]) > max_bytes
    async for part in reply.aiter_raw():
        size += len(part)
        if is_too_large or size > max_bytes:
            raise ServerError(f"{server.label}: its reply has more than {max_bytes:,} bytes; check the server")
        parts.append(part)
    return b"".join(parts)


def _message(text: str) -> str:
    """Return the error message in a JSON body of OpenAI's or vLLM's format.

    Any other body is returned unchanged.
    """
    try:
        value = parse_json(text)
    except JsonError:
        return text
    for name in ("error", "message", "detail"):
        if isinstance(value, dict) and name in value:
            value = value[name]
    return value if isinstance(value, str) else text


def _seconds(text: str) -> float:
    """Return the seconds of a Retry-After header; 0 for a date or another text."""
    return float(text) if re.fullmatch(r"[0-9]{1,6}", text, re.ASCII) else 0.0


def _causes(error: BaseException | None) -> list[BaseException]:
    """Return an exception and the exceptions that caused it."""
    found = list[BaseException]()
    while error is not None and len(found) < 20:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found
