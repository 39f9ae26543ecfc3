"""Addresses of servers in recipes, and the permission to connect to them.

Without permission, a recipe can connect to this machine only: to a loopback IP address or to localhost. The user must allow any
other host, on the command line or in Python, because training data are sent to it.
"""

import ipaddress
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from redistill.errors import ConfigError
from redistill.storage.redaction import MASK, plain_line

MAX_URL = 500
_SHOWN = 100  # characters of a rejected URL in an error message
_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?)*", re.ASCII)
_HOST_AND_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:]+)(:[0-9]{1,5})?", re.ASCII)
_PATH = re.compile(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*/?", re.ASCII)
_PORTS = {"http": 80, "https": 443}
_EXAMPLE = "such as http://127.0.0.1:8000/v1 or https://teacher.example/v1"


@dataclass(frozen=True, kw_only=True)
class Address:
    """The address of a server.

    Args:
        scheme: "http" or "https".
        host: DNS name in lower case, or IP address without brackets.
        port: Port, in [1, 65535].
        path: Path of the API, such as "/v1", without a slash at its end.

    Example:
        >>> address = parse_url("http://127.0.0.1:8000")
        >>> str(address), address.is_loopback
        ('http://127.0.0.1:8000/v1', True)
    """

    scheme: str
    host: str
    port: int
    path: str

    @property
    def is_loopback(self) -> bool:
        """True for localhost, an address in 127.0.0.0/8, and ::1.

        False for every other name.  Names are not resolved, since a name may resolve to another address later.
        """
        if self.host == "localhost":
            return True
        try:
            address = ipaddress.ip_address(self.host)
        except ValueError:
            return False
        return address.is_loopback and (address.version == 4 or address == ipaddress.IPv6Address("::1"))

    @property
    def origin(self) -> str:
        """Host and port, with brackets around an IPv6 address."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def label(self) -> str:
        """Name of the server in messages, such as "server 127.0.0.1:8000"."""
        return f"server {self.origin}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.origin}{self.path}"


def parse_url(url: str) -> Address:
    """Return the address that a URL contains.

    Only unambiguous URLs are accepted, so that this function and the HTTP library cannot disagree about the host.  A URL
    without a path has the path /v1.

    Raises:
        ConfigError: the scheme is neither http nor https; the URL has user information, a query or a fragment; or the host or
            the path contains unusual characters.

    Example:
        >>> parse_url("https://Teacher.example/v1/").host
        'teacher.example'
        >>> parse_url("https://me:secret@teacher.example/v1")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        redistill.errors.ConfigError: 'https://***@teacher.example/v1': contains user information;...
    """
    if len(url) > MAX_URL:
        raise ConfigError(f"{_shown(url)}: a URL must have at most {MAX_URL} characters; shorten it")
    if "@" in url:
        raise ConfigError(f"{_shown(url)}: contains user information; remove it, and name a variable in api_key_env")
    if not url.isascii() or re.search(r"[\x00-\x20\x7f\\]", url):
        raise ConfigError(f"{_shown(url)}: contains a space, a backslash or a character that is not ASCII; use a plain URL")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"{_shown(url)}: is not a URL ({error}); use one {_EXAMPLE}") from error
    if parts.scheme not in _PORTS or not parts.hostname or not _HOST_AND_PORT.fullmatch(parts.netloc):
        raise ConfigError(f"{_shown(url)}: must be an http or https URL with a host, {_EXAMPLE}")
    if "?" in url or "#" in url:
        raise ConfigError(f"{_shown(url)}: must not have a query or a fragment; remove it")
    if not _PATH.fullmatch(parts.path):
        raise ConfigError(f"{_shown(url)}: its path has unusual characters or an empty part; use a plain path, such as /v1")
    if port == 0:
        raise ConfigError(f"{_shown(url)}: the port must lie between 1 and 65535")
    host = _host(parts.hostname, is_bracketed="[" in parts.netloc)
    path = parts.path.rstrip("/") or "/v1"
    return Address(scheme=parts.scheme, host=host, port=port or _PORTS[parts.scheme], path=path)


def _host(text: str, *, is_bracketed: bool) -> str:
    """Return a host in its normal form.

    Raises:
        ConfigError: the text is neither an IP address nor a DNS name.
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        address = None
    if address is not None and (address.version == 6) == is_bracketed and "%" not in text:
        return str(address)
    # A last label of digits, as in 127.1 or 0x7f.1, is an IP address for some libraries.
    is_name = address is None and not is_bracketed and bool(_NAME.fullmatch(text.lower()))
    if not is_name or re.fullmatch(r"(0x[0-9a-f]*|[0-9]+)", text.lower().rpartition(".")[2]):
        raise ConfigError(f"{_shown(text)}: must be a DNS name or an IP address, such as teacher.example or 10.0.0.7")
    return text.lower()


def _shown(url: str) -> str:
    """Return a rejected URL for an error message.

    User information and control characters are removed.
    """
    return repr(re.sub(r"(?<=//)[^/]*@", f"{MASK}@", plain_line(url))[:_SHOWN])


# --- permission ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Allowed:
    """A host that the user has allowed.

    Args:
        host: The host, as in `Address`.
        port: The port; None allows all ports.
        scheme: "https", or "http" if unencrypted connections are allowed too.
        text: The text that the user gave.
    """

    host: str
    port: int | None
    scheme: str
    text: str


_allowed: list[_Allowed] = []  # the hosts that the user allowed for this process; a recipe cannot add any


def allow_hosts(hosts: Iterable[str]) -> None:
    """Set the hosts to which this process may connect as a client of a server.

    Connections to this machine are always allowed.  The command-line option --allow-host calls this function; a recipe cannot.
    Each call replaces the hosts of the previous call.

    Args:
        hosts: The hosts. "HOST" or "HOST:PORT" permits encrypted connections. "http://HOST:PORT" also permits connections that
            are not encrypted. HOST must be equal to the host in the recipe; wildcards are not supported.

    Raises:
        ConfigError: an item has none of these forms.

    Example:
        >>> allow_hosts(["teacher.example"])
        >>> check_allowed(parse_url("https://teacher.example/v1"))
        >>> allow_hosts([])
        >>> check_allowed(parse_url("https://teacher.example/v1"))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        redistill.errors.ConfigError: https://teacher.example:443/v1: is not on this machine, and ...
    """
    _allowed[:] = [_parse_allowed(text) for text in hosts]


def allowed_hosts() -> list[str]:
    """Return the strings that were passed to `allow_hosts`, for child processes."""
    return [rule.text for rule in _allowed]


def _parse_allowed(text: str) -> _Allowed:
    scheme, found, rest = text.partition("://")
    if not found:
        scheme, rest = "https", text
    has_port = bool(re.search(r"(\]|^[^:]*):[0-9]+$", rest))
    bracketed = f"[{rest}]" if rest.count(":") > 1 and "[" not in rest else rest
    try:
        address = parse_url(f"{scheme}://{bracketed}")
    except ConfigError as error:
        raise ConfigError(f"--allow-host {error}") from error
    if address.path != "/v1" or "/" in rest:
        raise ConfigError(f"--allow-host {_shown(text)}: must be HOST, HOST:PORT or http://HOST:PORT, without a path")
    return _Allowed(address.host, address.port if has_port else None, address.scheme, text)


def check_allowed(address: Address) -> None:
    """Check that this process may connect to a server.

    Raises:
        ConfigError: the host is not on this machine and is not allowed; the connection would not be encrypted and only
            encrypted ones are allowed; or localhost resolves to another machine.
    """
    if address.is_loopback:
        if address.host == "localhost":
            _check_localhost()
        return
    rules = [rule for rule in _allowed if rule.host == address.host and rule.port in (None, address.port)]
    if not rules:
        raise ConfigError(
            f"{address}: is not on this machine, and data would be sent to it; add --allow-host "
            f"{_as_option(address)} to the command to allow this"
        )
    if address.scheme == "http" and all(rule.scheme == "https" for rule in rules):
        raise ConfigError(
            f"{address}: data would be sent without encryption; use https, or add "
            f"--allow-host http://{address.origin} to the command to allow this"
        )


def _as_option(address: Address) -> str:
    if address.scheme == "http":
        return f"http://{address.origin}"
    return address.origin.removesuffix(":443")


def _check_localhost() -> None:
    """Raise a ConfigError if the name localhost resolves to another machine."""
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo("localhost", None)}
    except OSError as error:
        raise ConfigError(f"localhost: cannot be resolved ({error.strerror}); use 127.0.0.1") from error
    if other := sorted(text for text in found if not ipaddress.ip_address(text.partition("%")[0]).is_loopback):
        raise ConfigError(f"localhost: resolves to {other[0]}, which is not this machine; use 127.0.0.1")
