"""Uploads go through the given client only; every failure is one line."""

import pytest

from redistill.deploy.export import export
from redistill.deploy.hub import check_push, push
from redistill.errors import ConfigError, OutputError
from tests.deploy.models import write_kind


class Hub:
    """A client that records what it is asked to do, and fails with `error`."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls, self.error = [], error

    def create_repo(self, repo_id, *, private, exist_ok):
        self.calls.append(("create", repo_id, private, exist_ok))

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        self.calls.append(("upload", repo_id, sorted(path.name for path in folder_path.iterdir())))
        if self.error is not None:
            raise self.error


@pytest.fixture
def token(monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_" + "x" * 30)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


def test_the_exported_folder_is_uploaded_to_a_private_repository(tmp_path, token):
    hub, folder = Hub(), write_kind(tmp_path / "model", "smollm2")
    found = export(str(folder), "gguf", tmp_path / "out", repository="me/mine", api=hub)
    assert hub.calls == [("create", "me/mine", True, True), ("upload", "me/mine", ["README.md", "model.gguf"])]
    assert found.url.endswith("/me/mine")


def test_nothing_is_uploaded_without_a_repository(tmp_path):
    hub = Hub()
    found = export(str(write_kind(tmp_path / "model", "smollm2")), "transformers", tmp_path / "out", api=hub)
    assert hub.calls == [] and found.url is None


@pytest.mark.parametrize("name", ["mine", "a/b/c", "/me/mine", "me/mi ne", "\x1b[31m/x"])
def test_a_name_that_is_no_repository_is_rejected_before_anything_is_written(name, tmp_path, token):
    with pytest.raises(ConfigError, match="must be OWNER/NAME"):
        export(str(tmp_path / "missing"), "gguf", tmp_path / "out", repository=name)


def test_a_missing_token_is_named_before_anything_is_written(tmp_path, monkeypatch, token):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(ConfigError, match="HF_TOKEN"):
        check_push("me/mine")


def test_offline_mode_is_named(monkeypatch, token):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE"):
        check_push("me/mine")


def test_a_failed_upload_is_one_line_without_secrets(tmp_path):
    secret = "hf_" + "a1" * 16
    with pytest.raises(OutputError, match="could not be uploaded") as raised:
        push(tmp_path, "me/mine", Hub(RuntimeError(f"401 for {secret}\nmore")))
    assert "\n" not in str(raised.value) and secret not in str(raised.value) and "hf upload me/mine" in str(raised.value)
