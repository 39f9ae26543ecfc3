"""The HTTP client against servers on the loopback address: limits, retries, redirects, proxies and the API key."""

import gzip
import json
import shutil
import ssl
import subprocess
from collections.abc import Sequence
from pathlib import Path

import anyio
import pytest

from redistill.errors import ConfigError, Interrupted, ServerError, ServerUnavailableError
from redistill.processes import signals
from redistill.servers.address import allow_hosts, parse_url
from redistill.servers.client import Client, Limits, Request, api_key, check_variable
from tests.servers.fake import Answer, Received, Script, serving

KEY = "q7w8e9r0t1y2u3i4"
QUICK = Limits(connect_s=5.0, total_s=5.0, attempts=3, patience_s=5.0, first_wait_s=0.0)
POST = Request("/completions", {"prompt": [1]}, 10_000)


def client(*urls: str, key: str | None = None, limits: Limits = QUICK, said: list[str] | None = None) -> Client:
    return Client([parse_url(url) for url in urls], key=key, limits=limits, report=[].append if said is None else said.append)


def exchanged(script: Script, requests: Sequence[Request] = (POST,), **settings) -> list[object]:
    """The values of a server's replies."""
    with serving(script) as server:
        return [reply.value for reply in client(server.url, **settings).exchange(requests)]


class Sequenced:
    """Replies one after another; the last one is repeated."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)

    def __call__(self, received: Received) -> Answer:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def test_replies_are_in_the_order_of_the_requests() -> None:
    requests = [Request("/completions", {"number": number}, 1000) for number in range(100)]
    assert exchanged(lambda received: Answer(received.body), requests) == [{"number": number} for number in range(100)]


def test_get_and_post() -> None:
    with serving(lambda received: Answer([received.method, received.path])) as server:
        replies = client(server.url).exchange([Request("/models", None, 1000), POST])
        assert [reply.value for reply in replies] == [["GET", "/v1/models"], ["POST", "/v1/completions"]]
        assert {reply.server for reply in replies} == {f"server {server.url.split('/')[2]}"}


def test_the_key_is_sent_as_a_bearer_token_and_only_if_there_is_one() -> None:
    with serving(lambda received: Answer({})) as server:
        client(server.url, key=KEY).exchange([POST])
        client(server.url).exchange([POST])
    one, two = server.received
    assert one.headers["authorization"] == f"Bearer {KEY}" and "authorization" not in two.headers
    assert one.headers["accept-encoding"] == "identity"
    assert one.headers["host"] == server.url.split("/")[2]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "where", ["http://127.0.0.2:9/v1/completions", "/v1/other", "https://teacher.example/", "file:///etc/passwd"]
)
def test_redirects_are_not_followed(status: int, where: str) -> None:
    with (
        serving(lambda received: Answer({}, status, {"Location": where})) as server,
        pytest.raises(ServerError, match="is a redirect, which is not followed"),
    ):
        client(server.url, key=KEY).exchange([POST])
    assert len(server.received) == 1


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HTTPS_PROXY"])
def test_a_proxy_of_the_environment_is_not_used(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with serving(lambda received: Answer({"proxy": True})) as proxy:
        monkeypatch.setenv(name, proxy.url.removesuffix("/v1"))
        assert exchanged(lambda received: Answer({"proxy": False}), key=KEY) == [{"proxy": False}]
    assert proxy.received == []


def test_a_netrc_file_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password letmein99\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    with serving(lambda received: Answer({})) as server:
        client(server.url).exchange([POST])
    assert "authorization" not in server.received[0].headers


# --- retries ------------------------------------------------------------------------------------------------------------

BUSY = Answer({"error": {"message": "busy"}}, 503)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 529])
def test_a_temporary_failure_is_tried_again(status: int) -> None:
    said: list[str] = []
    script = Sequenced(Answer(b"", status), Answer(b"", status, {"Retry-After": "0"}), Answer({"fine": 1}))
    assert exchanged(script, said=said) == [{"fine": 1}]
    assert len(said) == 1 and f"status {status}; the request is tried again" in said[0]


@pytest.mark.parametrize("status", [201, 204, 400, 401, 403, 404, 405, 410, 418, 422, 451, 501, 505])
def test_another_status_is_final(status: int) -> None:
    answer = Answer(b"" if status == 204 else {"message": "no"}, status)
    with serving(lambda received: answer) as server, pytest.raises(ServerError) as caught:
        client(server.url).exchange([POST])
    assert (len(server.received), caught.value.exit_code) == (1, 2) and f"status {status}" in str(caught.value)


def test_attempts_are_limited_and_the_exit_code_is_that_of_a_temporary_failure() -> None:
    text = r"status 503 \(busy\); gave up after 3 attempts"
    with serving(lambda received: BUSY) as server, pytest.raises(ServerUnavailableError, match=text) as caught:
        client(server.url).exchange([POST])
    assert (len(server.received), caught.value.exit_code) == (3, 75)


def test_a_wait_that_exceeds_the_patience_is_not_begun() -> None:
    for limits, headers in ((Limits(first_wait_s=100.0, patience_s=1.0), {}), (Limits(patience_s=1.0), {"Retry-After": "50"})):
        answer = Answer({}, 429, headers)
        with serving(Sequenced(answer)) as server, pytest.raises(ServerUnavailableError):
            client(server.url, limits=limits).exchange([POST])
        assert len(server.received) == 1


class Clock:
    """The module anyio, with a clock that only `sleep` advances."""

    def __init__(self) -> None:
        self.now = 0.0

    def __getattr__(self, name: str) -> object:
        return getattr(anyio, name)

    def current_time(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize("num_servers", [1, 8, 16])
def test_the_patience_is_a_time_whatever_the_number_of_servers(num_servers: int, monkeypatch) -> None:
    clock = Clock()
    monkeypatch.setattr("redistill.servers.client.anyio", clock)
    with serving(lambda received: BUSY) as server, pytest.raises(ServerUnavailableError):
        client(*[server.url] * num_servers, limits=Limits(patience_s=900.0)).exchange([POST])
    assert 900 - 60 <= clock.now <= 900  # the longest wait is 60 s


@pytest.mark.parametrize("value", ["-1", "1e9", "nan", "Wed, 21 Oct 2037 07:28:00 GMT", "\u0661", "9" * 400, ""])
def test_an_invalid_retry_after_is_ignored(value: str) -> None:
    headers = {"Retry-After": value.encode("utf-8").decode("latin-1")}
    assert exchanged(Sequenced(Answer({}, 503, headers), Answer([1]))) == [[1]]


def test_another_server_is_tried_unless_the_request_is_for_one_server() -> None:
    with serving(lambda received: BUSY) as bad, serving(lambda received: Answer(["good"])) as good:
        found = client(bad.url, good.url).exchange([POST])
        assert found[0].value == ["good"] and found[0].server == f"server {good.url.split('/')[2]}"
        with pytest.raises(ServerUnavailableError):
            client(bad.url, good.url).exchange([POST._replace(is_pinned=True)])
    assert len(bad.received) == 4


def test_a_refused_connection_is_a_temporary_failure() -> None:
    with serving(lambda received: BUSY) as server:
        url = server.url
    with pytest.raises(ServerUnavailableError, match=r"no valid reply \(ConnectError"):
        client(url).exchange([POST])


# --- limits -------------------------------------------------------------------------------------------------------------


def waiting(parts: Sequence[bytes]) -> Script:
    """A server that sends parts of a reply and then nothing, until the test ends."""

    def script(received: Received) -> Answer:
        def slowly():
            yield from parts
            server.stopped.wait(30)

        return Answer(raw=slowly())

    with serving(script) as server:
        yield server


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"


@pytest.mark.parametrize("parts", [[], [b"HTT"], [b"HTTP/1.1 200 OK\r\nX: "], [HEAD], [HEAD, b"[1"]])
def test_a_reply_that_does_not_end_is_given_up(parts: Sequence[bytes]) -> None:
    for server in waiting(parts):
        limits = Limits(total_s=0.1, attempts=2, first_wait_s=0.0)
        with pytest.raises(ServerUnavailableError, match=r"no complete reply within 0\.1 s; gave up after 2 attempts"):
            client(server.url, limits=limits).exchange([POST])
        server.stopped.set()


def test_a_signal_ends_the_wait_for_a_reply() -> None:
    for server in waiting([HEAD]):
        with signals.handled(), pytest.raises(Interrupted):
            signals._flag.number = 15
            client(server.url).exchange([POST])
        server.stopped.set()


def chunked(*parts: bytes) -> Answer:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    return Answer(raw=[head, *(b"%x\r\n%s\r\n" % (len(part), part) for part in parts), b"0\r\n\r\n"])


@pytest.mark.parametrize(
    "answer",
    [
        Answer(b"[" + b" " * 100_000 + b"]"),
        chunked(*[b" " * 5000] * 10),
        Answer(raw=[b"HTTP/1.1 200 OK\r\n\r\n", b" " * 50_000]),
        Answer(raw=[b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n", b" "]),
        Answer(b" " * 100_000, 400),
        Answer(b" " * 100_000, 503),
    ],
)
def test_a_large_reply_is_rejected(answer: Answer) -> None:
    with pytest.raises(ServerError, match=r"its reply has more than [0-9,]+ bytes"):
        exchanged(lambda received: answer)


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "deflate", "br", "zstd", "gzip, gzip", "identity, gzip", "x"])
def test_a_compressed_reply_is_rejected_without_expanding_it(encoding: str) -> None:
    bomb = gzip.compress(b" " * 10_000_000)
    with pytest.raises(ServerError, match="sent a compressed reply"):
        exchanged(lambda received: Answer(bomb, 200, {"Content-Encoding": encoding}), [POST._replace(max_bytes=1_000_000)])


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n[]",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n[]",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n[]",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n[]",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n[]\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-2\r\n[]\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n[]",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffffffff\r\n[]",
        b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n[]",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 200_000 + b"\r\n\r\n[]",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 50_000 + b"\r\n[]",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 1000,
    ],
    ids=range(15),
)
def test_invalid_http_is_a_failed_attempt_of_one_line(raw: bytes) -> None:
    with pytest.raises(ServerUnavailableError, match=r"no valid reply") as caught:
        exchanged(lambda received: Answer(raw=[raw]))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[NaN]",
        b"[Infinity]",
        b"[1e999]",
        b'{"a": 1, "a": 2}',
        b'[{"a": {"b": 1, "c": 2, "b": 1}}]',
        b"\xff\xfe[]",
        b"[" * 5000 + b"]" * 5000,
        b"[" + b"9" * 5000 + b"]",
        b"[1] [2]",
        b"<html></html>",
    ],
)
def test_a_reply_that_is_not_valid_json_is_rejected(body: bytes) -> None:
    with pytest.raises(ServerError, match="not valid JSON"):
        exchanged(lambda received: Answer(body), [POST._replace(max_bytes=100_000)])


# --- messages of servers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"error": {"message": "no such thing"}}, "no such thing"),
        ({"object": "error", "message": "no such thing"}, "no such thing"),
        ({"detail": "no such thing"}, "no such thing"),
        (b"no such\n\nthing", "no such thing"),
        ({"error": {"message": "\x1b]0;owned\x07no \u202esuch\u200b thing\r\n"}}, "no such thing"),
        ({"error": {"message": "x" * 5000}}, "x" * 200 + "..."),
        ({"error": {"message": f"your key {KEY} is wrong"}}, "your key *** is wrong"),
        ({"error": [1, 2]}, '{"error": [1, 2]}'),
        (b"\xff\xfe", "\ufffd\ufffd"),
    ],
)
def test_the_message_of_a_server_is_one_filtered_line(body: object, said: str) -> None:
    with pytest.raises(ServerError) as caught:
        exchanged(lambda received: Answer(body, 400), key=KEY)
    assert f"status 400 ({said}): the server rejected the request" in str(caught.value)


def test_the_text_of_a_server_cannot_pose_as_a_key_that_is_cut() -> None:
    with pytest.raises(ServerError) as caught:
        exchanged(lambda received: Answer({"message": "x" * 190 + KEY}, 400), key=KEY)
    assert KEY[:8] not in str(caught.value)


@pytest.mark.parametrize(("key", "said"), [(KEY, "rejected the API key"), (None, "needs an API key")])
def test_a_rejected_key(key: str | None, said: str) -> None:
    with pytest.raises(ServerError, match=f"{said}; set api_key_env"):
        exchanged(lambda received: Answer({}, 401), key=key)


# --- keys, hosts and certificates ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["TEACHER_API_KEY", "MY_KEY", "VLLM_TOKEN", "DEPLOYKEY"])
def test_names_of_variables_of_keys(name: str) -> None:
    check_variable(name)


@pytest.mark.parametrize(
    "name", ["", "HOME", "PATH", "a b_KEY", "KEY=1", "X\nKEY", "sk-12345678901234567890", "MY_KEY_PATH", "1KEY"]
)
def test_other_names_are_rejected(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^api_key_env = "):
        check_variable(name)


@pytest.mark.parametrize(
    "value", ["", "short", "has a space in it", "line\r\nX-Injected: 1", "t\u00e4st-key-123", "a" * 5000, "nul\0key-1234"]
)
def test_a_value_that_is_no_key_is_rejected_and_not_shown(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.environ", {"MY_KEY": value})
    with pytest.raises(ConfigError, match=r"^api_key_env = 'MY_KEY': the") as caught:
        api_key("MY_KEY")
    assert value == "" or value not in str(caught.value)


def test_a_host_that_is_not_allowed_is_not_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    allow_hosts([])
    monkeypatch.setattr("socket.getaddrinfo", lambda *args, **kwargs: pytest.fail("a name was resolved"))
    with pytest.raises(ConfigError, match=r"--allow-host teacher\.example"):
        client("https://teacher.example/v1")


def test_a_permission_that_was_withdrawn_is_noticed_before_each_exchange() -> None:
    allow_hosts(["teacher.example"])
    made = client("https://teacher.example/v1")
    allow_hosts([])
    with pytest.raises(ConfigError, match="--allow-host"):
        made.exchange([POST])


@pytest.mark.parametrize("text", ["a\r\nX-Injected: 1", "a\nb", "\0", "\ud800", "\u2028"])
def test_a_name_in_the_body_cannot_add_headers(text: str) -> None:
    with serving(lambda received: Answer({})) as server:
        client(server.url).exchange([Request("/completions", {"model": text}, 1000)])
    assert server.received[0].body == {"model": text} and "x-injected" not in server.received[0].headers


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
def test_a_certificate_that_nobody_signed_is_rejected(tmp_path: Path) -> None:
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run([*made, "-keyout", "key.pem", "-out", "cert.pem"], cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    with serving(lambda received: Answer({})) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        with pytest.raises(ServerError, match="TLS certificate is invalid") as caught:
            client(server.url.replace("http:", "https:"), key=KEY).exchange([POST])
    assert server.received == [] and caught.value.exit_code == 2


def test_the_key_is_in_no_representation() -> None:
    made = client("http://127.0.0.1:9/v1", key=KEY)
    assert KEY not in repr(made) + str(made) + json.dumps(repr(made._limits))
