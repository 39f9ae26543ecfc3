"""docs/performance.svg: the figures of results/*.json as bars, shorter is better."""

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from benchmarks.measuring import RESULTS

CHART = Path(__file__).parents[1] / "docs" / "performance.svg"
RIVALS = ("torch", "liger", "trl")
OURS, THEIRS = "#1b6ca8", "#b8bec6"


def main() -> None:
    loss, memory, step = (read(name)["results"] for name in ("loss", "memory", "step"))
    first = next(iter(loss)).split(", ")[0]
    jsd = f"{first}, jsd"
    panels = [
        (f"Jensen-Shannon, {first}\ntime over the matrix products alone", loss[jsd]["over the floor"], {"floor"}),
        (f"Jensen-Shannon, {first}\npeak above weights and inputs, MB", memory["megabytes"][jsd], set()),
        *((f"whole step, {precision}\ntime over TRL's", step[precision]["ratios"], set()) for precision in ("fp32", "bf16")),
    ]
    plt.rcParams.update({"svg.hashsalt": "redistill", "svg.fonttype": "none", "font.size": 9})
    figure, axes = plt.subplots(2, 2, figsize=(10, 6))
    for axis, (title, values, left_out) in zip(axes.flat, panels, strict=True):
        bars(axis, title, {name: value for name, value in values.items() if name not in left_out})
    figure.tight_layout()
    figure.savefig(CHART, metadata={"Date": None, "Creator": None})


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def bars(axis: Any, title: str, values: dict[str, float]) -> None:
    """One panel, the least on top; what is not of this project is grey."""
    names = sorted(values, key=lambda name: -values[name])
    is_rival = [
        name.split(",")[0] in ("torch", "liger", "trl", "trl chunked", "trl gkd", "trl-checkpointing") for name in names
    ]
    drawn = axis.barh(names, [values[name] for name in names], color=[THEIRS if rival else OURS for rival in is_rival])
    axis.bar_label(drawn, fmt=lambda value: f" {value:.0f}" if value >= 100 else f" {value:.2f}")
    axis.set_title(title, fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    axis.margins(x=0.15)


if __name__ == "__main__":
    main()
