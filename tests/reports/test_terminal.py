"""Tables on a terminal or in a pipe have at most 80 columns, and no label is lost."""

import re
from typing import Any

import pytest

from redistill.reports.terminal import print_scores

LABEL = "".join(f"set{number:02}-" for number in range(20))[:100]


def scores(*datasets: str, metrics: int) -> dict[str, Any]:
    names = [f"metric_{number}_of_ours" for number in range(metrics)]
    described = {name: {"title": name, "unit": "%", "better": "higher"} for name in names}
    seed = {**dict.fromkeys(names, 27.25), "length_tokens": 100.0, "eos_rate": 1.0}
    return {"datasets": {name: {"prompts": 500, "metrics": described, "seeds": {"10": seed, "20": seed}} for name in datasets}}


@pytest.mark.parametrize("metrics", [1, 3, 5])
def test_a_table_in_a_pipe_fits_80_columns_and_long_labels_are_wrapped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, metrics: int
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    print_scores(scores("dolly", LABEL, metrics=metrics))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and "\x1b" not in "".join(lines)
    first = "".join(match[1].strip() for line in lines if (match := re.match(r"│([^│]*)│", line)))
    assert first == f"dolly{LABEL}"
    heads = [
        "".join(parts).replace(" ", "") for parts in zip(*(line.split("┃")[1:-1] for line in lines if "┃" in line), strict=True)
    ]
    assert heads[2:-2] == [f"metric_{number}_of_ours(%)" for number in range(metrics)] or heads[2:-2] == [
        f"metric_{number}_of_ours" for number in range(metrics)
    ]
