"""The table of fuzzed inputs is complete."""

import re
from pathlib import Path

from tests.faults.counts import FUZZED


def test_every_reader_of_the_table_has_one_test() -> None:
    files = sorted(Path(__file__).parent.glob("test_fuzz*.py"))
    found = [
        name for path in files for name in re.findall(r'^@fuzzed\("(.*)"\)$', path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert sorted(found) == sorted(FUZZED)


def test_there_are_at_least_5000_quick_inputs_and_100000_in_all() -> None:
    assert sum(quick for quick, _ in FUZZED.values()) >= 5_000
    assert sum(whole for _, whole in FUZZED.values()) >= 100_000
