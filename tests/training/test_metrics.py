"""metrics.jsonl of a resumed run equals that of an uninterrupted one."""

import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redistill.errors import DataError
from redistill.storage import files
from redistill.training.metrics import MetricsLog


def test_an_interrupted_and_resumed_log_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    def write(log: MetricsLog, first: int, last: int) -> None:
        for step in range(first, last + 1):
            log.write({"kind": "train", "step": step, "loss": 1 / step})
            if step % 2 == 0:
                log.write({"kind": "validation", "step": step, "rouge_l": 20.0 + step})

    straight, broken = MetricsLog(tmp_path / "a.jsonl"), MetricsLog(tmp_path / "b.jsonl")
    write(straight, 1, 6)
    write(broken, 1, 5)
    with broken.path.open("ab") as file:
        file.write(b'{"kind": "train", "st')  # killed in the middle of a write
    broken.truncate_after(4)
    assert [line["step"] for line in files.read_lines(broken.path)] == [1, 2, 2, 3, 4, 4]
    write(broken, 5, 6)
    assert broken.path.read_bytes() == straight.path.read_bytes()


def test_truncating_a_missing_log_does_nothing(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.truncate_after(0)
    assert not log.path.exists()


@st.composite
def logs(draw: st.DrawFn) -> list[bytes]:
    """Lines of a run, several or none for each update, in the order in which a run writes them."""
    kinds = st.sampled_from(["train", "validation", "event"])
    counts = draw(st.lists(st.lists(kinds, max_size=3), min_size=1, max_size=8))
    lines = [
        {"kind": kind, "step": step, "text": draw(st.text(max_size=4))} for step, each in enumerate(counts) for kind in each
    ]
    return [json.dumps(line, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n" for line in lines]


@given(logs(), st.sampled_from([b"", b'{"kind": "train", "st', b'{"kind": "train", "step": 99}', b"\xc3"]))
@settings(max_examples=60, deadline=None)
def test_truncation_by_size_equals_truncation_by_scan_after_every_update(tmp_path_factory, lines, torn) -> None:
    """The last line may be torn; one that is complete but for its newline is of a later update."""
    log = MetricsLog(tmp_path_factory.mktemp("logs") / "metrics.jsonl")
    steps = [json.loads(line)["step"] for line in lines]
    for step in range(-1, max(steps, default=0) + 1):
        kept = b"".join(line for line, at in zip(lines, steps, strict=True) if at <= step)
        for size in (len(kept), None):
            log.path.write_bytes(b"".join(lines) + torn)
            log.truncate_after(step, size)
            assert log.path.read_bytes() == kept, size


@pytest.mark.parametrize("wrong", [1, -1, 10_000])
def test_a_size_at_which_no_line_ends_is_not_used(tmp_path: Path, wrong: int) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in range(1, 5):
        log.write({"kind": "train", "step": step, "loss": 1 / step})
        if step == 2:
            size, kept = log.num_bytes(), log.path.read_bytes()
    log.truncate_after(2, size + wrong)
    assert log.path.read_bytes() == kept


def test_a_file_that_was_edited_is_read_to_find_the_update(tmp_path: Path) -> None:
    """Blank lines and lines without a step are kept or skipped as `read_lines` does."""
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.path.write_text('{"step": 1}\n\n{"note": 1}\n3\n{"step": 7}\n{"step": 2}\n{"step": 3}')
    log.truncate_after(2)
    assert log.path.read_text() == '{"step": 1}\n{"note": 1}\n3\n{"step": 2}\n'
    log.path.write_text('{"step": 1}\n{"st\n{"step": 2}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl:2: not JSON"):
        log.truncate_after(1)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("with_size", [True, False])
def test_memory_of_truncation_does_not_depend_on_the_size_of_the_log(tmp_path: Path, with_size: bool) -> None:
    path = tmp_path / "metrics.jsonl"
    with path.open("w") as file:
        file.writelines(json.dumps({"kind": "train", "step": step, "loss": 0.125}) + "\n" for step in range(1, 20_001))
    size = path.read_bytes().index(b"\n", path.stat().st_size // 2) + 1
    step = json.loads(path.read_bytes()[:size].splitlines()[-1])["step"]
    tracemalloc.start()
    MetricsLog(path).truncate_after(step, size if with_size else None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size == size and peak < 2e5, peak


def test_a_missing_log_has_no_bytes(tmp_path: Path) -> None:
    assert MetricsLog(tmp_path / "metrics.jsonl").num_bytes() == 0
