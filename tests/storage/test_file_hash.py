"""Hashes of files: computed again exactly when the file may have changed."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from redistill.storage import cache, file_hash, files

CONTENT, OTHER = b"a" * 1000, b"b" * 1000


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file whose hash is cached, although it is small and new."""
    monkeypatch.setenv("REDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(file_hash, "LARGE_BYTES", len(CONTENT))
    monkeypatch.setattr(file_hash, "SETTLED_S", -1e9)
    file = tmp_path / "model.safetensors"
    file.write_bytes(CONTENT)
    return file


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files outside of the cache whose content was read."""
    found, digest = list[Path](), files.digest

    def counted(path: Path) -> str:
        if path.name not in (cache.ARRAYS, cache.MANIFEST):
            found.append(path)
        return digest(path)

    monkeypatch.setattr(files, "digest", counted)
    return found


def entry(path: Path) -> Path:
    """The only entry of the cache."""
    (found,) = (path.parent / "cache" / "hashes").iterdir()
    return found


def overwrite_in_place(path: Path) -> None:
    path.write_bytes(OTHER)


def replace_by_a_copy(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(OTHER)
    times = path.stat()
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    path.unlink()
    shutil.copy2(other, path)  # as cp -p


def rename_another_file(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(OTHER)
    other.replace(path)


@pytest.mark.parametrize("change", [overwrite_in_place, replace_by_a_copy, rename_another_file])
def test_a_replaced_file_of_equal_size_and_time_is_hashed_again(path: Path, change: Callable[[Path], None]) -> None:
    before, times = file_hash.file_hash(path, print), path.stat()
    change(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (times.st_size, times.st_mtime_ns)
    assert file_hash.file_hash(path, print) == files.digest(path) != before


def test_an_unchanged_file_is_hashed_once_under_all_its_names(path: Path, hashed: list[Path]) -> None:
    link = path.with_name("link")
    link.symlink_to(path)
    found = {file_hash.file_hash(each, print) for each in (path, path, link)}
    assert hashed == [path] and found == {files.digest(path)}


def test_a_link_to_another_file_has_the_hash_of_that_file(path: Path) -> None:
    link, other = path.with_name("link"), path.with_name("other")
    other.write_bytes(OTHER)
    link.symlink_to(path)
    first = file_hash.file_hash(link, print)
    link.unlink()
    link.symlink_to(other)
    assert file_hash.file_hash(link, print) == files.digest(other) != first


@pytest.mark.parametrize(("name", "value"), [("LARGE_BYTES", len(CONTENT) + 1), ("SETTLED_S", 1e9)])
def test_small_files_and_files_that_have_just_changed_are_not_cached(
    path: Path, hashed: list[Path], monkeypatch: pytest.MonkeyPatch, name: str, value: float
) -> None:
    monkeypatch.setattr(file_hash, name, value)
    assert file_hash.file_hash(path, print) == file_hash.file_hash(path, print)
    assert hashed == [path, path] and not (path.parent / "cache").exists()


def copy_the_entry_of_another_file(path: Path) -> None:
    mine = entry(path)
    other = path.with_name("other")
    other.write_bytes(OTHER)
    file_hash.file_hash(other, print)
    (theirs,) = (each for each in mine.parent.iterdir() if each != mine)
    shutil.rmtree(mine)
    theirs.rename(mine)


def flip_a_bit(path: Path) -> None:
    arrays = entry(path) / cache.ARRAYS
    content = bytearray(arrays.read_bytes())
    content[-1] ^= 1
    arrays.write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(entry(path) / cache.ARRAYS, 10)


def write_no_json(path: Path) -> None:
    (entry(path) / cache.MANIFEST).write_text("{", encoding="utf-8")


@pytest.mark.parametrize("damage", [copy_the_entry_of_another_file, flip_a_bit, truncate, write_no_json])
def test_a_damaged_or_foreign_entry_is_computed_again(path: Path, hashed: list[Path], damage: Callable[[Path], None]) -> None:
    file_hash.file_hash(path, print)
    damage(path)
    hashed.clear()
    notes = list[str]()
    assert file_hash.file_hash(path, notes.append) == file_hash.file_hash(path, notes.append) == files.digest(path)
    assert hashed[0] == path and len(notes) == 1 and "computed again" in notes[0]
    assert len(hashed) == 2, "the second of them is of this test"


def test_without_a_writable_cache_every_call_hashes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDISTILL_CACHE", str(path / "cache"))
    notes = list[str]()
    assert file_hash.file_hash(path, notes.append) == files.digest(path)
    assert len(notes) == 1 and "stays in memory" in notes[0]


def test_large_arrays_of_the_cache_are_read_for_their_hash_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(file_hash, "LARGE_BYTES", 5000)
    monkeypatch.setattr(file_hash, "SETTLED_S", -1e9)
    read, digest, made = list[str](), files.digest, list[int]()

    def counted(path: Path) -> str:
        read.append(path.parent.parent.name)
        return digest(path)

    def make() -> cache.Stored:
        made.append(1)
        return cache.Stored({"numbers": np.arange(1000)}, {})

    monkeypatch.setattr(files, "digest", counted)
    for _ in range(3):
        found = cache.cached("tokens", "0" * 64, make, report=pytest.fail)
        assert found.arrays["numbers"].tolist() == list(range(1000))
    assert read.count("tokens") == 1 and made == [1]
    path = tmp_path / "cache" / "tokens" / ("0" * 64) / cache.ARRAYS
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    notes = list[str]()
    found = cache.cached("tokens", "0" * 64, make, report=notes.append)
    assert found.arrays["numbers"].tolist() == list(range(1000)) and made == [1, 1] and "is damaged" in notes[0]
