"""Writes are atomic and never leave the folder; a truncated last line is skipped."""

import errno
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redistill.errors import DataError, OutputError
from redistill.storage import files, folders


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(f"{files.TEMPORARY}*")]


@pytest.fixture
def full_disk(monkeypatch):
    """A function after whose call the disk is full whenever a file is synced."""

    def fill():
        def fsync(descriptor):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("os.fsync", fsync)

    return fill


# --- one file -----------------------------------------------------------------------------------------------------------


def test_a_write_replaces_the_file_and_leaves_no_temporary_files(tmp_path):
    path = tmp_path / "deep" / "a.json"
    files.write_json(path, {"a": [1, "ä"]})
    files.write_json(path, {"b": 2})
    assert files.read_json(path) == {"b": 2} and [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_a_failed_write_keeps_the_old_file_and_reports_the_path(tmp_path, full_disk):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    full_disk()
    with pytest.raises(OutputError) as caught:
        files.write_text(path, "newer")
    assert (
        str(caught.value)
        == f"{path}: 5 bytes could not be written (No space left on device); free space or choose another folder"
    )
    assert path.read_text() == "old" and not leftovers(tmp_path)


def test_a_path_below_a_file_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("")
    for write in (lambda path: files.write_text(path, "x"), lambda path: files.append_line(path, 1)):
        with pytest.raises(OutputError, match="could not be written"):
            write(tmp_path / "file" / "a")
    with pytest.raises(OutputError, match="choose another output folder"):
        files.make_folder(tmp_path / "file" / "a")


def test_nan_is_not_written_as_json(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "a.json", {"a": float("nan")})
    assert not list(tmp_path.iterdir())


def test_a_lone_surrogate_is_written_as_its_escape(tmp_path):
    files.write_text(tmp_path / "a.txt", "a\ud800b")
    assert (tmp_path / "a.txt").read_bytes() == b"a\\ud800b"


def test_a_missing_or_invalid_json_file_is_a_data_error(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(DataError, match="no such file"):
        files.read_json(path)
    for text in (b"{", b"\xff"):
        path.write_bytes(text)
        with pytest.raises(DataError, match="not JSON"):
            files.read_json(path)


def test_parts_are_consumed_one_at_a_time_and_hashed(tmp_path):
    pending = []

    def parts():
        for part in (b"ab", b"", memoryview(b"c")):
            pending.append(leftovers(tmp_path))
            yield part

    assert files.write_parts(tmp_path / "a", parts(), 3) == files.digest(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"abc" and all(pending) and not leftovers(tmp_path)


def test_a_system_error_of_a_rust_library_is_an_output_error(tmp_path):
    with (
        pytest.raises(files.DiskFullError, match=r"f: 1,234 bytes could not be written \(No space left on device\)") as caught,
        folders.new_folder(tmp_path / "f", 1234),
    ):
        raise RuntimeError("I/O error: No space left on device (os error 28)")
    assert caught.value.exit_code == 75 and not list(tmp_path.iterdir())


# --- lines --------------------------------------------------------------------------------------------------------------

values = st.none() | st.booleans() | st.integers() | st.text() | st.dictionaries(st.text(), st.text(), max_size=2)


@given(st.lists(values, max_size=4), st.lists(values, max_size=1))
@settings(max_examples=25)
def test_appended_lines_are_read_back(tmp_path_factory, first, second):
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    files.append_lines(path, first)
    for value in second:
        files.append_line(path, value)
    # Characters that UTF-8 cannot encode are escaped, so compare with the values decoded from the file.
    expected = [json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace") for value in [*first, *second]]
    assert path.read_bytes().split(b"\n")[:-1] == expected
    assert files.read_lines(path) == [json.loads(line) for line in expected]


def test_a_truncated_last_line_is_skipped(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n\n{"a": 2}\n{"a": 3, "b": "\xc3')
    assert files.read_lines(path) == [{"a": 1}, {"a": 2}]


def test_a_damaged_line_in_the_middle_is_an_error_with_its_number(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": \n{"a": 2}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:2: not JSON"):
        files.read_lines(path)


@pytest.mark.parametrize("rest", [b'{"a": 3, "b": "', b"x" * 20_000])
def test_a_truncated_line_is_removed_before_another_is_appended(tmp_path, rest):
    path = tmp_path / "a.jsonl"
    for whole in (b'{"a": 1}\n{"a": 2}\n', b""):
        path.write_bytes(whole + rest)
        files.append_line(path, {"a": 4})
        assert path.read_bytes() == whole + b'{"a": 4}\n'


def test_a_failed_append_keeps_the_other_lines(tmp_path, full_disk):
    path = tmp_path / "a.jsonl"
    files.append_line(path, {"a": 1})
    full_disk()
    with pytest.raises(files.DiskFullError, match=r"a\.jsonl: 18 bytes could not be written \(No space left on device\)"):
        files.append_lines(path, [{"a": 2}, {"a": 3}])
    assert path.read_bytes() == b'{"a": 1}\n'


def test_a_missing_file_has_no_lines(tmp_path):
    assert files.read_lines(tmp_path / "none") == []


def test_rewriting_lines_is_atomic(tmp_path, full_disk):
    path = tmp_path / "a.jsonl"
    files.rewrite_lines(path, [1, 2])
    full_disk()
    with pytest.raises(OutputError):
        files.rewrite_lines(path, [3])
    assert files.read_lines(path) == [1, 2] and not leftovers(tmp_path)


# --- folders ------------------------------------------------------------------------------------------------------------


def fill(folder: Path, text: str) -> None:
    with folders.new_folder(folder) as temporary:
        assert temporary != folder and temporary.parent == folder.parent
        (temporary / "sub").mkdir()
        (temporary / "sub" / "a.txt").write_text(text)


def test_a_new_folder_replaces_the_old_one_as_a_whole(tmp_path):
    fill(tmp_path / "f", "old")
    (tmp_path / "f" / "more.txt").write_text("of the old one")
    fill(tmp_path / "f", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert [path.name for path in (tmp_path / "f").rglob("*.txt")] == ["a.txt"]
    assert (tmp_path / "f" / "sub" / "a.txt").read_text() == "new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OutputError])
def test_a_failed_folder_does_not_replace_the_old_one(tmp_path, error):
    fill(tmp_path / "f", "old")
    with pytest.raises(error), folders.new_folder(tmp_path / "f") as temporary:
        (temporary / "half").write_text("")
        raise error("x")
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f" / "sub" / "a.txt").read_text() == "old"


def test_a_full_disk_is_an_output_error_and_leaves_no_folder(tmp_path, full_disk):
    with (
        pytest.raises(OutputError, match=r"f: could not be written \(No space left on device\)"),
        folders.new_folder(tmp_path / "f") as temporary,
    ):
        (temporary / "a").write_text("")
        full_disk()
    assert not list(tmp_path.iterdir())


def test_only_temporary_files_are_removed_after_a_crash(tmp_path):
    (tmp_path / f"{files.TEMPORARY}f-1").mkdir()
    (tmp_path / f"{files.TEMPORARY}f-1" / "a").write_text("")
    (tmp_path / f"{files.TEMPORARY}b").write_text("")
    (tmp_path / "kept").write_text("")
    folders.remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_removed_folder_leaves_nothing(tmp_path):
    fill(tmp_path / "f", "x")
    folders.remove_folder(tmp_path / "f")
    assert not list(tmp_path.iterdir())


def test_a_created_folder_is_empty(tmp_path):
    assert list(files.make_folder(tmp_path / "a" / "b").iterdir()) == []
    assert files.make_folder(tmp_path / "a" / "b").is_dir()


# --- names --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "a/../../b", ".."])
def test_a_name_that_leads_out_is_rejected(tmp_path, name):
    with pytest.raises(OutputError, match="leads out of the folder"):
        files.inside(tmp_path / "f", name)


def test_a_link_that_leads_out_is_rejected(tmp_path):
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "link").symlink_to(tmp_path)
    with pytest.raises(OutputError, match="leads out"):
        files.inside(tmp_path / "f", "link/a")
    assert files.inside(tmp_path / "f", "sub/a.txt") == tmp_path / "f" / "sub" / "a.txt"


@given(st.text())
def test_slugs_are_valid_names_and_idempotent(text):
    slug = files.slug(text)
    assert slug and slug[0] != "." and not set(slug) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
    assert files.slug(slug) == slug
    assert files.inside(Path("/run"), slug) == Path("/run") / slug


def test_a_digest_equals_that_of_sha256sum(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert files.digest(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# --- links --------------------------------------------------------------------------------------------------------------


def linked(path, precious, kind):
    precious.write_text("mine")
    if kind == "symbolic link":
        path.symlink_to(precious)
    elif kind == "hard link":
        path.hardlink_to(precious)
    else:
        os.mkfifo(path)


@pytest.mark.parametrize("kind", ["symbolic link", "hard link", "pipe"])
@pytest.mark.parametrize("write", [lambda path: files.append_line(path, 1), files.open_log], ids=["lines", "log"])
def test_nothing_is_appended_to_another_file(tmp_path, kind, write):
    linked(tmp_path / "log", tmp_path / "precious", kind)
    with pytest.raises(files.OutputError, match="could not be written"):
        write(tmp_path / "log")
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_written_file_replaces_a_link_and_not_its_target(tmp_path):
    for kind in ("symbolic link", "hard link"):
        linked(tmp_path / kind, tmp_path / "precious", kind)
        files.write_text(tmp_path / kind, "new")
        assert ((tmp_path / "precious").read_text(), (tmp_path / kind).read_text()) == ("mine", "new")


def test_the_first_linked_folder_is_found(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "file").write_text("")
    (tmp_path / "a" / "link to a file").symlink_to(tmp_path / "a" / "file")
    (tmp_path / "a" / f"{files.TEMPORARY}x").symlink_to(tmp_path)
    assert folders.linked_folder(tmp_path) is None
    (tmp_path / "a" / "b" / "c").symlink_to(tmp_path / "a")
    assert folders.linked_folder(tmp_path) == tmp_path / "a" / "b" / "c"
    assert folders.linked_folder(tmp_path / "none") is None
