"""The cache of arrays: computed once, mapped by all processes, and computed again when it is damaged."""

import json
import multiprocessing
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from redistill.errors import DataError
from redistill.storage import cache
from redistill.storage.cache import Stored, cached

KEY = "0" * 40


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("REDISTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kind" / KEY


def made(calls=None):
    def make():
        if calls is not None:
            calls.append(1)
        arrays = {"ids": np.arange(100_000, dtype=np.int32), "none": np.zeros((0, 2), dtype=np.int64)}
        return Stored({**arrays, "bytes": np.arange(7, dtype=np.uint8)}, {"count": 3, "names": ["a"]})

    return make


def get(calls=None, said=None, key=KEY):
    return cached("kind", key, made(calls), report=(said if said is not None else []).append)


def check(found):
    expected = made()()
    assert found.about == expected.about and list(found.arrays) == list(expected.arrays)
    assert all(np.array_equal(found.arrays[n], a) and found.arrays[n].dtype == a.dtype for n, a in expected.arrays.items())


def test_arrays_are_computed_once(folder):
    calls, said = [], []
    for _ in range(3):
        check(get(calls, said))
    assert (len(calls), said) == (1, [])
    assert sorted(path.name for path in folder.iterdir()) == ["arrays.safetensors", "manifest.json"]


def mapped(path: Path, start, maps) -> None:
    start.wait()
    found = get()
    maps.put((int(found.arrays["ids"].sum()), str(path / cache.ARRAYS) in Path("/proc/self/maps").read_text(encoding="utf-8")))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_processes_that_start_together_map_one_file(folder):
    context = multiprocessing.get_context("fork")
    start, maps = context.Event(), context.Queue()
    processes = [context.Process(target=mapped, args=(folder, start, maps)) for _ in range(4)]
    for process in processes:
        process.start()
    start.set()
    assert [maps.get(timeout=60) for _ in processes] == [(sum(range(100_000)), True)] * 4
    for process in processes:
        process.join()


def damage_arrays(folder):
    data = bytearray((folder / cache.ARRAYS).read_bytes())
    data[-5] ^= 1
    (folder / cache.ARRAYS).write_bytes(data)


def change_manifest(**changes):
    def change(folder):
        manifest = json.loads((folder / cache.MANIFEST).read_text(encoding="utf-8"))
        (folder / cache.MANIFEST).write_text(json.dumps(manifest | changes), encoding="utf-8")

    return change


DAMAGE = {
    "one bit": damage_arrays,
    "truncated": lambda folder: os.truncate(folder / cache.ARRAYS, 50),
    "no arrays": lambda folder: (folder / cache.ARRAYS).unlink(),
    "no manifest": lambda folder: (folder / cache.MANIFEST).unlink(),
    "no JSON": lambda folder: (folder / cache.MANIFEST).write_text("{", encoding="utf-8"),
    "a list": lambda folder: (folder / cache.MANIFEST).write_text("[]", encoding="utf-8"),
    "another key": change_manifest(key="1" * 40),
    "missing names": change_manifest(arrays=["other"]),
    "wrong type": change_manifest(arrays=3),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_entry_is_made_again(folder, damage):
    calls, said = [], []
    get(calls)
    damage(folder)
    check(get(calls, said))
    check(get(calls))
    assert len(calls) == 2 and all("computed again" in line and str(folder) in line for line in said)


def test_an_interrupted_write_leaves_no_entry(folder):
    def fail():
        raise DataError("no rows")

    with pytest.raises(DataError, match="no rows"):
        cached("kind", KEY, fail, report=print)
    assert not (folder / cache.MANIFEST).exists()
    check(get())


def test_without_a_writable_folder_the_arrays_stay_in_memory(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("REDISTILL_CACHE", str(tmp_path / "file" / "cache"))
    calls, said = [], []
    check(get(calls, said))
    assert len(calls) == 1 and len(said) == 1 and "stays in memory" in said[0]


def test_a_process_waits_for_the_one_that_computes_and_can_be_interrupted(folder):
    calls, polls = [], []
    entered, release = threading.Event(), threading.Event()

    def slow():
        entered.set()
        release.wait(60)
        return made(calls)()

    first = threading.Thread(target=lambda: cached("kind", KEY, slow, report=print))
    first.start()
    entered.wait(60)

    def poll():
        polls.append(1)
        release.set()

    check(cached("kind", KEY, made(calls), report=print, poll=poll))
    first.join()
    assert len(calls) == 1 and polls


def test_entries_that_were_not_used_for_long_are_removed_when_another_is_written(folder):
    get()
    old = time.time() - (cache.KEPT_DAYS + 1) * 86_400
    os.utime(folder / cache.MANIFEST, (old, old))
    get()  # a use
    get(key="1" * 40)
    assert folder.exists()
    os.utime(folder / cache.MANIFEST, (old, old))
    get(key="2" * 40)
    assert not folder.exists() and (folder.parent / ("1" * 40)).exists()


def test_incomplete_entries_that_were_not_changed_for_long_are_removed(folder):
    for key, days in (("3" * 40, cache.KEPT_DAYS + 1), ("4" * 40, cache.KEPT_DAYS - 1)):
        get(key=key)
        (folder.parent / key / cache.MANIFEST).unlink()
        changed = time.time() - days * 86_400
        os.utime(folder.parent / key, (changed, changed))
    get()
    assert sorted(path.name for path in folder.parent.iterdir()) == sorted([KEY, "4" * 40])
