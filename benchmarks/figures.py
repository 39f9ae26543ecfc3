"""The figures of docs/explanation, from the tables of the results and from public functions: docs/images/*.svg.

python -m benchmarks.figures
"""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np
import torch

from redistill.losses.divergences import ForwardKL, JensenShannon, ReverseKL

DOCS = Path(__file__).parents[1] / "docs"
BLUE, ORANGE, GREY, RED = "#1b6ca8", "#c8641e", "#b8bec6", "#b3261e"
CLASSES = np.linspace(-4, 4, 41)


def main() -> None:
    plt.rcParams.update({"svg.hashsalt": "redistill", "svg.fonttype": "none", "font.size": 9})
    for draw in (divergences, scrg, dac_kl, collapse, spans, on_policy, intervals):
        draw()


def save(figure: Any, name: str) -> None:
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(DOCS / f"images/{name}.svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)


def table(page: str, heading: str) -> list[list[str]]:
    """The rows of the first table whose first column is named so, without its head."""
    text = (DOCS / page).read_text(encoding="utf-8")
    block = re.search(rf"^\| {heading} \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert block is not None, f"{page}: no table with the column {heading}"
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in block[1].splitlines()]


def divergences() -> None:
    """A student of one peak that minimises each divergence to a teacher of two peaks."""
    teacher = 0.7 * np.exp(-((CLASSES + 1.5) ** 2) / 0.5) + 0.3 * np.exp(-((CLASSES - 1.8) ** 2) / 0.5)
    logp = torch.tensor(teacher / teacher.sum()).log()[None]
    places = torch.tensor(CLASSES)
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.6), sharey=True)
    shown = {"forward KL": ForwardKL(), "Jensen-Shannon": JensenShannon(teacher_weight=0.5), "reverse KL": ReverseKL()}
    for axis, (name, divergence) in zip(axes, shown.items(), strict=True):
        centre, width = (torch.tensor(start, dtype=torch.float64, requires_grad=True) for start in (-0.5, 1.0))
        optimiser = torch.optim.LBFGS([centre, width], max_iter=200, line_search_fn="strong_wolfe")

        def logq(centre: torch.Tensor = centre, width: torch.Tensor = width) -> torch.Tensor:
            return torch.log_softmax(-((places - centre) ** 2) / (2 * width**2), dim=-1)[None]

        def loss(optimiser: Any = optimiser, logq: Any = logq, divergence: Any = divergence) -> torch.Tensor:
            optimiser.zero_grad()
            value = divergence(logq(), logp).sum()
            value.backward()
            return value

        optimiser.step(loss)
        axis.fill_between(CLASSES, logp[0].exp(), color=GREY, label="teacher", step="mid")
        axis.step(CLASSES, logq()[0].exp().detach(), color=BLUE, where="mid", label="student")
        axis.set_title(name, fontsize=9)
        axis.set_xticks([])
    axes[0].set_ylabel("probability")
    axes[0].legend(frameon=False)
    save(figure, "divergences")


def scrg() -> None:
    """The divergence at each token of the first draft of docs/walkthrough.md, and its error token."""
    page = (DOCS / "walkthrough.md").read_text(encoding="utf-8")
    script = "".join(re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL))
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(script, names)  # noqa: S102 - our own page
    row = names["kl_BT"][0].tolist()
    words = [names["WORDS"][token] for token in names["drafts"][0].response_ids]
    teacher = [names["WORDS"][int(token)] for token in names["teacher_BT"][0]]
    error = names["errors"][0]
    figure, axis = plt.subplots(figsize=(9, 2.6))
    axis.bar(range(len(words)), row[: len(words)], color=[RED if i == error else BLUE for i in range(len(words))])
    labels = [f"{mine}\nteacher: {other}" for mine, other in zip(words, teacher, strict=False)]
    axis.set_xticks(range(len(words)), labels)
    axis.annotate("error token: replaced, what follows is generated again", (error - 0.4, row[error] + 0.3), color=RED)
    axis.set_ylabel("KL(student, teacher), nats")
    axis.margins(y=0.25)
    save(figure, "scrg")


def dac_kl() -> None:
    """What each class of one row adds to the clipped KL: classes above 0 are worth dropping, those below worth keeping."""
    ranks = np.arange(1, 25)
    p = ranks**-1.4 / (ranks**-1.4).sum()
    q = ranks**-0.9 / (ranks**-0.9).sum()
    terms = p * np.log(p / q)
    figure, axes = plt.subplots(1, 2, figsize=(9, 2.8))
    axes[0].bar(ranks - 0.2, p, width=0.4, color=GREY, label="teacher p")
    axes[0].bar(ranks + 0.2, q, width=0.4, color=BLUE, label="student q")
    axes[0].axhline(0.02, color=ORANGE, linestyle="--")
    axes[0].annotate("l", (24, 0.02), color=ORANGE, ha="right", va="bottom")
    axes[0].set_ylabel("probability")
    axes[0].legend(frameon=False)
    axes[1].bar(ranks, terms, color=[RED if term > 0 else BLUE for term in terms])
    axes[1].axhline(0, color="black", linewidth=0.8)
    axes[1].set_ylabel("p log(p / q), nats")
    for axis in axes:
        axis.set_xlabel("class, by the teacher's probability")
        axis.set_xticks([1, 5, 10, 15, 20])
    save(figure, "dac-kl")


def collapse() -> None:
    """The table of docs/methods/mgsr.md: DAC-KL as printed, whose network learns."""
    rows = table("methods/mgsr.md", "update")
    updates, kept, largest, recovered, dropped = (np.array([float(row[i]) for row in rows]) for i in range(5))
    figure, axis = plt.subplots(figsize=(9, 2.8))
    axis.plot(updates, kept, color=BLUE, marker="o", label="kept mass")
    axis.plot(updates, largest, color=GREY, marker="o", label="mass of the arg max")
    axis.plot(updates, recovered, color=RED, marker="o", label="recovered")
    axis.plot(updates, dropped, color=ORANGE, marker="o", label="dropped above a kept class")
    axis.set_xscale("log")
    axis.set_xticks(updates, [f"{update:.0f}" for update in updates])
    axis.set_xticks([], minor=True)
    axis.set_xlabel("update")
    axis.legend(frameon=False, ncols=2)
    save(figure, "collapse")


def spans() -> None:
    """The weights of Eq. 10 for the pairs of neighbouring tokens of a sentence."""
    tokens = ["The", "quick", "brown", "fox", "was", "quietly", "jumping", "over", "the", "lazy", "dog"]
    phrases = {"noun phrase": (0, 4), "verb phrase": (4, 7), "prepositional phrase": (7, 11)}
    figure, axis = plt.subplots(figsize=(9, 2.4))
    for (name, (start, end)), colour in zip(phrases.items(), (BLUE, ORANGE, RED), strict=True):
        size = end - start
        axis.bar(np.arange(start, end - 1) + 0.5, 1 / (len(phrases) * size), width=0.9, color=colour, label=name)
    axis.set_xticks(range(len(tokens)), tokens)
    axis.set_ylabel("weight of the pair")
    axis.margins(y=0.5)
    axis.legend(frameon=False, ncols=3)
    save(figure, "spans")


def on_policy() -> None:
    """KL to the teacher and ROUGE-L of nine methods, from docs/results/toy-tables.md."""
    rows = table("results/toy-tables.md", "row")
    figure, axis = plt.subplots(figsize=(9, 3.2))
    for name, score, *_, kl in rows:
        own = name in ("imitkd", "gkd", "minillm", "distillm", "mgsr", "mgsr-robust")
        value = float(score.split()[0])
        axis.scatter(float(kl), value, color=BLUE if own else GREY, zorder=2)
        right = name == "mgsr-robust" or not name.startswith("mgsr")
        side = {"ha": "left", "xytext": (6, 0)} if right else {"ha": "right", "xytext": (-6, 0)}
        axis.annotate(name, (float(kl), value), va="center", textcoords="offset points", **side)
    axis.set_xscale("log")
    axis.set_xticks([0.06, 0.1, 0.2, 0.4, 0.6], ["0.06", "0.1", "0.2", "0.4", "0.6"])
    axis.set_xticks([], minor=True)
    axis.margins(x=0.12)
    axis.set_xlabel("KL(teacher, student) on gold answers, nats per token")
    axis.set_ylabel("ROUGE-L")
    save(figure, "on-policy")


def intervals() -> None:
    """Half-widths of the 95 % interval of a paired difference, by prompts and training seeds."""
    prompts = np.array([30, 60, 120, 250, 500, 1000])
    figure, axis = plt.subplots(figsize=(9, 2.8))
    for seeds, colour in ((1, GREY), (3, ORANGE), (10, BLUE)):
        half = 1.96 * np.sqrt(20**2 * 0.5 / prompts + 20**2 * 0.5 / (prompts * seeds) + 0.6**2 / seeds)
        axis.plot(prompts, half, color=colour, marker="o", label=f"{seeds} training seed{'s' * (seeds > 1)}")
    axis.set_xscale("log")
    axis.set_xticks(prompts, [str(count) for count in prompts])
    axis.set_xticks([], minor=True)
    axis.set_xlabel("prompts")
    axis.set_ylabel("± ROUGE-L")
    axis.legend(frameon=False)
    save(figure, "intervals")


if __name__ == "__main__":
    main()
