"""Writes synthetic run folders that give a report with all of its sections, with different scores for each model and prompt."""

import math
from pathlib import Path

import numpy as np

from redistill.records import ACCEPTANCE
from redistill.storage import files
from tests.reports.fabricated import GAIN, PROMPTS, metrics, write_json, write_lines, write_run, write_scores

METRICS = {
    "rouge_l": {"title": "ROUGE-L", "unit": "%", "better": "higher"},
    "exact_match": {"title": "exact match", "unit": "fraction", "better": "higher"},
}
DECODINGS = {"greedy": {"temperature": 0.0}, "cold": {"temperature": 0.5, "top_p": 0.9}}
WORDS = ["The", " capital", " of", " France", " is", " not", " easy", "."]
SECTIONS = (
    *("verdict", "results", "decodings", "acceptance", "judge", "size", "answers", "tokens", "corrections", "windows"),
    *("curves", "events", "cost", "changes", "data", "repeat"),
)
"""The sections of the report of such a run with a baseline."""
OPEN_ALL = "document.querySelectorAll('details').forEach(each => each.open = true)"


def write_complete_run(folder: Path, name: str, role: str = "student") -> Path:
    """Write a run folder with every file that a report reads; a baseline has no teacher and no student before training."""
    write_run(folder, name, role=role)
    event = {"kind": "event", "step": 30, "event": "loss_spike", "text": "step 30: a spike"}
    masses = {"recovered": 0.4, "top_mass": 0.6, "dropped_above": 0.01}
    lines = [{**line, **masses} if line["kind"] == "train" else line for line in metrics(40)]
    write_lines(folder / "metrics.jsonl", [*lines, event])
    parts = {"": role} | ({"teacher": "teacher", "before": "before"} if role == "student" else {})
    for part, who in parts.items():
        write_noisy_scores(folder / part, who)
    write_positions(folder)
    write_windows(folder)
    write_judgement(folder)
    return folder


def write_noisy_scores(folder: Path, who: str) -> None:
    """Write scores with an independent term for each model, data set, seed and prompt."""
    number = list(GAIN).index(who)
    scores = {}
    for index, dataset in enumerate(("dolly", "vicuna")):
        hardness = np.random.default_rng(index).uniform(10, 40, PROMPTS)
        noise = np.random.default_rng([number, index]).normal(0, 4, (2, PROMPTS))
        scores[dataset] = {seed: hardness + GAIN[who] + noise[i] for i, seed in enumerate((10, 20))}
    write_scores(folder, who, scores, metrics=dict.fromkeys(scores, METRICS))
    held = files.read_json(folder / "scores.json")
    for index, dataset in enumerate(scores):
        rng = np.random.default_rng([number, index, 7])
        about = held["datasets"][dataset]
        for seed in about["seeds"].values():
            seed |= drawn_scores(rng)
        about["teacher_forced"] = dict(zip(("cross_entropy", "kl", "agreement"), rng.uniform(0.1, 0.9, 3), strict=True))
        if who != "teacher":
            about["teacher_forced"] |= {name: float(rng.uniform(0.1, 0.9)) for name in ACCEPTANCE}
        if who in ("student", "baseline"):
            about["decodings"] = {
                name: {
                    "sampling": sampling,
                    "seeds": {k: drawn_scores(rng) | {"rouge_l": 40 * rng.random()} for k in ("10", "20")},
                }
                for name, sampling in DECODINGS.items()
            }
    write_json(folder / "scores.json", held)


def drawn_scores(rng: np.random.Generator) -> dict[str, float]:
    """The scores of an evaluation seed that are not means over the lines of a responses file here."""
    names = ("exact_match", "eos_rate", "distinct_1", "distinct_2")
    return {name: float(rng.uniform(0.1, 0.9)) for name in names} | {"length_tokens": float(rng.uniform(20, 60))}


def write_positions(folder: Path) -> None:
    """Write the divergences by token of 8 answers and of 5 corrections."""

    def values(number: int, name: str) -> dict[str, object]:
        rng = np.random.default_rng(number)
        logs = {f"{who}_logprob": (-rng.random(len(WORDS))).tolist() for who in ("student", "teacher")}
        return {"tokens": WORDS, name: rng.lognormal(-1, 2, len(WORDS)).tolist(), **logs}

    answers = [{"dataset": "dolly", "id": f"dolly:{i}", "seed": 10, **values(i, "forward_kl")} for i in range(8)]
    corrections = [
        {"step": i, "sample": 7 * i, "position": 5}
        | {name: values(10 * i + k, "reverse_kl") | {"spans": [[1, 4]]} for k, name in enumerate(("before", "after"))}
        for i in range(1, 6)
    ]
    write_lines(folder / "positions.jsonl", answers)
    write_lines(folder / "revision-positions.jsonl", corrections)


def write_windows(folder: Path) -> None:
    """Write two windows of DAC-KL with 40 classes."""
    masses = [math.exp(-rank / 3) for rank in range(40)]
    classes = [
        {"text": f" word{i}", "rank": i + 1, "teacher": mass / sum(masses), "student": 0.025, "is_kept": i < 6}
        for i, mass in enumerate(masses)
    ]
    numbers = {"lower": 0.01, "upper": 0.5, "kept_classes": 6, "kept_mass": 0.87, "recovered": 0.8, "divergence": 0.3}
    place = {"position": 2, "context": "The capital is", "target": " word0", "mode": "value"}
    write_lines(folder / "windows.jsonl", [{"row": row, **place, **numbers, "classes": classes} for row in (4, 9)])


def write_judgement(folder: Path) -> None:
    """Write the results of a judge on one test set."""
    counts = {"prompts": 20, "wins": 9, "ties": 4, "losses": 7, "disagreements": 2, "unparsed": 0, "missing": 0}
    about = {**counts, "score": 0.55, "lower": 0.4, "upper": 0.7, "by_prompt": {}}
    settings = {"model": "judge-7b", "against": "teacher", "seeds": ["10"], "limit": None}
    write_json(folder / "judge.json", {"schema": 1, "comparisons": [{**settings, "datasets": {"dolly": about}}]})
