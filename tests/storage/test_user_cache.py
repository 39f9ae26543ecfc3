"""The compiler cache: private, never the predictable folder that torch uses, and rejected if others can write to it."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from redistill.errors import ConfigError
from redistill.storage import user_cache
from redistill.storage.user_cache import VARIABLE, check_compiler_cache, set_compiler_cache


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the compiler cache, which does not exist yet."""
    monkeypatch.setenv("REDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(VARIABLE, raising=False)
    return tmp_path / "cache" / "compiled"


def test_the_folder_is_created_for_this_user_only(cache: Path) -> None:
    check_compiler_cache()
    assert os.environ[VARIABLE] == str(cache) and cache.stat().st_mode & 0o777 == 0o700
    check_compiler_cache()


def test_torch_uses_the_folder(cache: Path) -> None:
    program = (
        "from redistill.storage.user_cache import check_compiler_cache; check_compiler_cache(); import torch;"
        "from torch._inductor.runtime.cache_dir_utils import cache_dir; print(cache_dir())"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(cache)


@pytest.mark.parametrize("user", ["me", "root", ""])
def test_the_default_of_torch_is_replaced(cache: Path, monkeypatch: pytest.MonkeyPatch, user: str) -> None:
    monkeypatch.setenv(VARIABLE, str(Path(tempfile.gettempdir(), f"torchinductor_{user}")))
    set_compiler_cache()
    assert os.environ[VARIABLE] == str(cache)


def test_a_folder_of_the_user_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "mine"))
    check_compiler_cache()
    assert os.environ[VARIABLE] == str(tmp_path / "mine")


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702, 0o1777])
def test_a_folder_that_others_can_write_to_is_rejected(cache: Path, mode: int) -> None:
    cache.mkdir(parents=True)
    cache.chmod(mode)
    with pytest.raises(ConfigError, match="other users can write to it, and their code would run; remove it, set TORCH"):
        check_compiler_cache()


def test_a_folder_of_another_user_is_rejected(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.mkdir(parents=True)
    monkeypatch.setattr(os, "geteuid", lambda: cache.stat().st_uid + 1)
    with pytest.raises(ConfigError, match="belongs to another user"):
        check_compiler_cache()


@pytest.mark.parametrize("is_link", [True, False])
def test_a_link_and_a_file_are_rejected(cache: Path, tmp_path: Path, is_link: bool) -> None:
    cache.parent.mkdir()
    (tmp_path / "other").mkdir()
    if is_link:
        cache.symlink_to(tmp_path / "other")
    else:
        cache.write_text("")
    with pytest.raises(ConfigError, match=r"is a link|cannot be created"):
        check_compiler_cache()


def test_a_home_folder_that_cannot_be_written_to_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(user_cache, "cache_folder", lambda: tmp_path / "file" / "cache")
    check_compiler_cache()
    found = Path(os.environ[VARIABLE])
    assert found.stat().st_mode & 0o777 == 0o700
    found.rmdir()
