"""URLs of servers, and which of them a process may connect to."""

import pytest

from redistill.errors import ConfigError
from redistill.servers import address
from redistill.servers.address import allow_hosts, allowed_hosts, check_allowed, parse_url


@pytest.fixture(autouse=True)
def _nothing_allowed():
    allow_hosts([])
    yield
    allow_hosts([])


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("http://localhost", "http://localhost:80/v1"),
        ("https://Teacher.Example/v1/", "https://teacher.example:443/v1"),
        ("https://teacher.example:8443/llm/v1", "https://teacher.example:8443/llm/v1"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1"),
        ("http://[0:0:0:0:0:0:0:1]:8000", "http://[::1]:8000/v1"),
        ("https://gpu_7.lan", "https://gpu_7.lan:443/v1"),
    ],
)
def test_a_url_has_one_normal_form(url: str, found: str) -> None:
    assert str(parse_url(url)) == found


REJECTED = [
    "",
    "teacher.example",
    "//teacher.example",
    "ftp://teacher.example",
    "file:///etc/passwd",
    "javascript:alert(1)",
    "unix:///run/vllm.sock",
    "http://",
    "http:///v1",
    "http://:8000",
    "http://me@teacher.example",
    "http://me:secret@127.0.0.1:8000",
    "http://127.0.0.1@teacher.example",
    "http://127.0.0.1:8000@teacher.example",
    "http://127.0.0.1#@teacher.example",
    "http://127.0.0.1\\.teacher.example",
    "http://127.0.0.1\\@teacher.example",
    "http://127.0.0.1 .teacher.example",
    "http://127.0.0.1\t.teacher.example",
    "http://127.0.0.1\n.teacher.example",
    "http://127.0.0.1\r\nHost: teacher.example",
    "http://127.0.0.1%2eteacher.example",
    "http://127.0.0.1%00",
    "http://127.0.0.1?x=1",
    "http://127.0.0.1/v1?api_key=1",
    "http://127.0.0.1/v1#x",
    "http://127.0.0.1/v1/../admin",
    "http://127.0.0.1//v1",
    "http://127.0.0.1/v1/%2e%2e/admin",
    "http://127.0.0.1/v1;x",
    "http://127.0.0.1:0",
    "http://127.0.0.1:65536",
    "http://127.0.0.1:-1",
    "http://127.0.0.1:80a",
    "http://127.1",
    "http://0x7f.0.0.1",
    "http://0x7f000001",
    "http://2130706433",
    "http://017700000001",
    "http://127.0.0.01",
    "http://256.0.0.1",
    "http://teacher.example.",
    "http://.teacher.example",
    "http://teacher..example",
    "http://-teacher.example",
    "http://téacher.example",
    "http://127\u30020\u30020\u30021",
    "http://\u2460\u2461\u2466.0.0.1",
    "http://*",
    "http://*.example",
    "http://[::1",
    "http://[127.0.0.1]",
    "http://[fe80::1%25eth0]",
    "http://[::1]x",
    "http://::1",
    "http://" + "a" * 600 + ".example",
    "http://" + "a" * 64 + ".example",
]


@pytest.mark.parametrize("url", REJECTED)
def test_an_ambiguous_url_is_rejected_in_one_line(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_url(url)
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 400
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.255.255.254", "localhost", "LOCALHOST", "[::1]"])
def test_a_loopback_address_needs_no_permission(host: str) -> None:
    check_allowed(parse_url(f"http://{host}:8000"))


ELSEWHERE = [
    "https://teacher.example",
    "https://localhost.example",
    "https://127.0.0.1.example",
    "https://foo.localhost",
    "https://10.0.0.7",
    "https://128.0.0.1",
    "https://126.255.255.255",
    "https://0.0.0.0",
    "https://[::]",
    "https://[::2]",
    "https://[::ffff:127.0.0.1]",
    "https://[::ffff:7f00:1]",
    "https://[64:ff9b::7f00:1]",
    "https://[2001:db8::1]",
    "https://169.254.169.254",
]


@pytest.mark.parametrize("url", ELSEWHERE)
def test_another_host_needs_permission(url: str) -> None:
    with pytest.raises(ConfigError, match=r"is not on this machine.*--allow-host"):
        check_allowed(parse_url(url))


@pytest.mark.parametrize("url", ELSEWHERE)
def test_the_option_that_the_error_names_allows_the_host(url: str) -> None:
    for given in (url, url.replace("https", "http"), f"{url}:8000"):
        with pytest.raises(ConfigError) as caught:
            check_allowed(parse_url(given))
        allow_hosts([str(caught.value).split("--allow-host ")[1].split(" ")[0]])
        check_allowed(parse_url(given))
        allow_hosts([])


@pytest.mark.parametrize(
    ("allowed", "url", "permitted"),
    [
        ("teacher.example", "https://teacher.example:8443/v1", True),
        ("TEACHER.example", "https://teacher.EXAMPLE/v1", True),
        ("teacher.example:443", "https://teacher.example/v1", True),
        ("teacher.example:443", "https://teacher.example:8443/v1", False),
        ("teacher.example", "https://other.teacher.example/v1", False),
        ("teacher.example", "https://teacher.example.evil.example/v1", False),
        ("example", "https://teacher.example/v1", False),
        ("teacher.example", "http://teacher.example/v1", False),
        ("https://teacher.example", "http://teacher.example/v1", False),
        ("http://teacher.example", "http://teacher.example:8000/v1", True),
        ("http://teacher.example", "https://teacher.example/v1", True),
        ("http://teacher.example:8000", "http://teacher.example:8001/v1", False),
        ("10.0.0.7", "https://10.0.0.7:8000/v1", True),
        ("10.0.0.7", "https://10.0.0.70/v1", False),
        ("2001:db8::1", "https://[2001:db8:0::1]/v1", True),
        ("[2001:db8::1]:8000", "https://[2001:db8::1]:8000/v1", True),
        ("[2001:db8::1]:8000", "https://[2001:db8::1]:8001/v1", False),
    ],
)
def test_a_host_is_allowed_exactly(allowed: str, url: str, permitted: bool) -> None:
    allow_hosts([allowed])
    assert allowed_hosts() == [allowed]
    if permitted:
        check_allowed(parse_url(url))
    else:
        with pytest.raises(ConfigError):
            check_allowed(parse_url(url))


@pytest.mark.parametrize("text", ["", "*", "*.example", "a/b", "http://a/v1", "me@host", "a b", "a:b", "http://", "10.0.0.0/8"])
def test_the_option_accepts_no_patterns_and_no_paths(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--allow-host "):
        allow_hosts([text])


def test_a_later_call_replaces_the_hosts() -> None:
    allow_hosts(["teacher.example"])
    allow_hosts(["other.example"])
    with pytest.raises(ConfigError):
        check_allowed(parse_url("https://teacher.example"))


def test_localhost_that_resolves_to_another_machine_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = [(2, 1, 6, "", ("203.0.113.7", 0))]
    monkeypatch.setattr(address.socket, "getaddrinfo", lambda host, port: elsewhere)
    with pytest.raises(ConfigError, match=r"localhost: resolves to 203\.0\.113\.7"):
        check_allowed(parse_url("http://localhost:8000"))
