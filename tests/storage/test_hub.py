"""Names that are paths are not looked up on the hub, and a look-up has a time limit."""

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from redistill.data import sources
from redistill.data.corpus import load_corpus
from redistill.data.reader import read_records
from redistill.errors import DataError, ModelError
from redistill.models import snapshots
from redistill.models.checked_model import checked_model
from redistill.storage import hub
from tests.worlds import gpt2_tokenizer


def find_file(name: str, file: str) -> Path | None:
    return snapshots.model_folder(name, None).find(file)


LOCAL = ("./owner/name", "../name", "/owner/name", "~/name", "held/name", "held/deeper/name", ".hidden", "owner\\name")
ON_HUB = ("owner/name", "name", "file/name", "other/held")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A working directory with a folder and a file; the libraries are online, and the hub has not been asked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(snapshots, "_resolved", {})
    (tmp_path / "held").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.unreachable.cache_clear()
    yield
    hub.unreachable.cache_clear()


def sessions(outcome: Callable[[], object]) -> Callable[[], object]:
    class Session:
        def head(self, url: str, timeout: float) -> object:
            return outcome()

    return Session


def no_route() -> object:
    raise OSError("no route\nto host")


@pytest.mark.parametrize("name", LOCAL)
def test_a_path_is_local_and_no_part_of_a_run_asks_the_hub_for_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_session", lambda: pytest.fail("the hub was asked"))
    monkeypatch.setattr(snapshots, "snapshot_download", lambda *args, **kwargs: pytest.fail("the hub was asked"))
    assert hub.is_local(name)
    with pytest.raises(ModelError, match="no such folder"):
        find_file(name, "config.json")
    with pytest.raises(DataError, match="no such file or folder"):
        read_records(name)
    with pytest.raises(DataError, match="no such file"):
        load_corpus([name], gpt2_tokenizer(), block_tokens=8, max_blocks=1)


@pytest.mark.parametrize("name", ON_HUB)
def test_another_name_is_looked_up(name: str) -> None:
    assert not hub.is_local(name)


def test_a_revision_in_the_name_of_a_model_names_the_setting() -> None:
    expected = (
        "^owner/name@v1.0: a hub name contains no revision; use owner/name, and set revision .--revision of evaluate. to v1.0$"
    )
    with pytest.raises(ModelError, match=expected):
        find_file("owner/name@v1.0", "config.json")
    (Path("held") / "name@v1.0").mkdir()
    assert find_file("held/name@v1.0", "config.json") is None, "a folder may have such a name"


def test_a_hub_that_does_not_answer_is_asked_once_and_the_error_has_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[int] = []

    def outcome() -> object:
        requests.append(1)
        return no_route()

    monkeypatch.setattr("huggingface_hub.get_session", sessions(outcome))
    reason = r"\(https?://.* cannot be reached \(no route\)\)"
    with pytest.raises(
        ModelError, match=rf"^nobody/none: cannot be looked up on the hub {reason}, and this machine has no copy"
    ):
        find_file("nobody/none", "config.json")
    with pytest.raises(DataError, match=rf"^nobody/none, file x.jsonl: cannot be read from the hub {reason}; check name"):
        read_records("nobody/none", hub_file="x.jsonl")
    with pytest.raises(ModelError, match="cannot be looked up"):
        find_file("nobody/other", "config.json")
    assert len(requests) == 1 and constants.HF_HUB_OFFLINE


def test_the_local_copy_is_used_if_the_hub_does_not_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.get_session", sessions(no_route))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    commit = "0" * 40
    repository = tmp_path / "cache" / "models--owner--copied"
    for path, text in (("refs/main", commit), (f"snapshots/{commit}/config.json", "{}")):
        (repository / path).parent.mkdir(parents=True)
        (repository / path).write_text(text)
    assert snapshots._has_copy("owner/copied", "main") and not snapshots._has_copy("owner/other", "main")
    assert find_file("owner/copied", "config.json") == repository / "snapshots" / commit / "config.json"
    assert find_file("owner/copied", "adapter_config.json") is None


def test_the_request_has_a_time_limit_even_if_the_library_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_session", sessions(lambda: time.sleep(5.0)))
    answer = hub.ask_hub(0.01)
    assert not answer.has_answered and answer.text.endswith("does not answer within 0.01 s")


def test_a_server_that_accepts_and_is_silent_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(hub, "LOOK_UP_SECONDS", 0.2)
        assert hub.unreachable() == f"{endpoint} does not answer within 0.2 s"


def test_any_status_code_is_an_answer_and_the_libraries_stay_online(monkeypatch: pytest.MonkeyPatch) -> None:
    response = type("Response", (), {"status_code": 503})
    monkeypatch.setattr("huggingface_hub.get_session", sessions(response))
    assert hub.unreachable() == "" and not constants.HF_HUB_OFFLINE


def test_offline_the_hub_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.get_session", lambda: pytest.fail("the hub was asked"))
    assert hub.unreachable() == "" and "HF_HUB_OFFLINE" in hub.ask_hub(1.0).text


def test_the_reason_of_a_failure_is_that_of_the_library_if_the_hub_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_session", sessions(type("Response", (), {"status_code": 200})))
    assert "(no such set)" in str(sources.hub_failed("owner/name", ValueError("no such set\nmore")))


LONG = "x" * 300
IMPOSSIBLE = [LONG, f"{LONG}/y", f"owner/{LONG}", f"./{LONG}", f"~/{LONG}", f"~{LONG}", f"{LONG}.gguf", "a/" * 1990]


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_a_name_that_no_path_can_have_is_an_error_of_one_line(name: str) -> None:
    fault = r": (a part of the path has 30\d|the path has 39\d\d) bytes; must be"
    with pytest.raises(ModelError, match=fault) as caught, checked_model(name, None):
        pass
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize("name", ["~nosuchuser/model", "~nosuchuser/model.gguf"])
def test_the_home_folder_of_an_unknown_user_is_no_model(name: str) -> None:
    with pytest.raises(ModelError, match=f"^{name}: no such f"), checked_model(name, None):
        pass
