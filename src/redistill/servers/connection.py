"""The connection to the servers of a teacher, an engine or a judge.

The settings are checked here, and the addresses, the API key and the limits of requests are derived from them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from redistill.errors import ConfigError, check_field
from redistill.servers.address import Address, parse_url
from redistill.servers.client import Client, Limits, Report, api_key, check_variable


class ServerSettings(Protocol):
    """Settings that name servers.

    The fields are documented in `ServedTeacherConfig`.
    """

    @property
    def url(self) -> tuple[str, ...]: ...

    @property
    def model(self) -> str: ...

    @property
    def api_key_env(self) -> str | None: ...

    @property
    def concurrent_requests(self) -> int: ...

    @property
    def timeout_s(self) -> float: ...

    @property
    def patience_s(self) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Connection:
    """Addresses of servers, with the API key and the limits of requests.

    Args:
        servers: The addresses.
        key: The API key; None if the servers need none.
        limits: Limits of requests.
        report: Function that is called with one line when a request is sent again.
    """

    servers: Sequence[Address]
    key: str | None = field(repr=False)
    limits: Limits
    report: Report

    def client(self) -> Client:
        """Return a client of the servers; nothing is sent yet.

        Raises:
            ConfigError: a server is not allowed.
        """
        return Client(self.servers, key=self.key, limits=self.limits, report=self.report)


def check_settings(settings: ServerSettings, *, usual_concurrent: int) -> None:
    """Check the fields of `ServerSettings`.

    Args:
        settings: The settings.
        usual_concurrent: A usual value of `concurrent_requests`, for the error message.

    Raises:
        ConfigError: a URL, the name of the model or of the variable is invalid, or a number is out of range.
    """
    if not settings.url:
        raise ConfigError("url: empty; give the address of a server, such as http://127.0.0.1:8000/v1")
    for url in settings.url:
        try:
            parse_url(url)
        except ConfigError as error:
            raise ConfigError(f"url = {error}") from error
    check_field(settings, "model", bool(settings.model.strip()), "must be the name of the model on the server")
    if settings.api_key_env is not None:
        check_variable(settings.api_key_env)
    is_valid = 1 <= settings.concurrent_requests <= 1024
    check_field(settings, "concurrent_requests", is_valid, f"must lie in [1, 1024]; {usual_concurrent} is usual")
    check_field(settings, "timeout_s", 0 < settings.timeout_s < math.inf, "must be > 0 and finite")
    check_field(settings, "patience_s", 0 <= settings.patience_s < math.inf, "must be >= 0 and finite")


def connection(settings: ServerSettings, role: str, report: Report) -> Connection:
    """Return the connection to the servers of settings, without sending a request.

    Args:
        settings: The settings.
        role: Name of the component in messages, such as "teacher".
        report: Function that is called with one line when a request is sent again.

    Raises:
        ConfigError: the variable of the API key is not set, or its value is not a key.
    """
    return Connection(
        servers=[parse_url(url) for url in settings.url],
        key=api_key(settings.api_key_env),
        limits=Limits(total_s=settings.timeout_s, patience_s=settings.patience_s, concurrent=settings.concurrent_requests),
        report=lambda line: report(f"{role}: {line}"),
    )


def destinations(settings: ServerSettings) -> str:
    """Return the end of a sentence that states where data are sent.

    The text names the servers, and the environment variable of the API key.  The sentence is printed before data are sent.
    """
    servers = [parse_url(url) for url in settings.url]
    leaves = "on this machine" if all(server.is_loopback for server in servers) else "and leave this machine"
    key = "" if settings.api_key_env is None else f", with the API key in ${settings.api_key_env}"
    return f"are sent to {', '.join(server.origin for server in servers)} {leaves}{key}"
