"""Writes synthetic run folders: two data sets, two seeds, teacher, student before and after training, baseline."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Scores = Mapping[str, Mapping[int, Sequence[float]]]
PROMPTS = 20
COST = {
    "updates": 40,
    "sequences": 640,
    "trained_tokens": 25_600,
    "generated_tokens": 12_800,
    "seconds": 90.0,
    "peak_bytes": 1_250_000_000,
}
GAIN = {"teacher": 8.0, "before": 0.0, "baseline": 4.0, "student": 6.0}


def write_json(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_lines(path: Path, lines) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_evaluation(folder: Path, role: str, datasets=("dolly", "vicuna"), text: str = "") -> None:
    """Write scores that increase with GAIN[role], and responses that contain the role."""
    scores = {
        dataset: {
            seed: 20 + GAIN[role] + 5 * np.random.default_rng([number, seed]).standard_normal(PROMPTS) for seed in (10, 20)
        }
        for number, dataset in enumerate(datasets)
    }
    write_scores(folder, role, scores, text=text)


def write_scores(
    folder: Path,
    who: str,
    scores: Scores,
    text: str = "",
    settings: dict | None = None,
    metrics: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Write an evaluation folder with these scores: data set -> evaluation seed -> one score per prompt.

    `metrics` describes the metrics of each data set; without it the folder has the format of commit 98f02f3.
    """
    described = {}
    for dataset, by_seed in scores.items():
        primary = next(iter((metrics or {}).get(dataset, ["rouge_l"])))
        seeds = {}
        for seed, rouge in by_seed.items():
            lines = [
                {
                    "id": f"{dataset}:{i}",
                    "prompt": f"Question {i}? {text}",
                    "response": f"{who} answers {i} with seed {seed}. {text}",
                    "references": [f"Reference {i}. {text}", "another"],
                    "category": ("open_qa", "closed_qa", "summarization")[i % 3],
                    primary: float(score),
                    "exact_match": False,
                    "tokens": 12,
                    "finished": i != 3,
                }
                for i, score in enumerate(rouge)
            ]
            write_lines(folder / "responses" / f"{dataset}-seed{seed}.jsonl", lines)
            averages = {"exact_match": 0.125, "length_tokens": 41.5, "eos_rate": 0.75, "distinct_1": 0.4, "distinct_2": 0.812}
            seeds[str(seed)] = {primary: float(np.mean(rouge)), **averages}
        forced = {"cross_entropy": 2.345, "kl": None if who == "teacher" else 0.456, "agreement": 0.678}
        described[dataset] = {"prompts": len(rouge), "seeds": seeds, "teacher_forced": forced}
        described[dataset] |= {"metrics": metrics[dataset]} if metrics is not None and dataset in metrics else {}
    big = who == "teacher"
    size = {
        "parameters": 1_500_000_000 if big else 120_000_000,
        "bytes": 3e9 if big else 2.4e8,
        "tokens_per_s": 100 if big else 450,
    }
    speed = {
        "latency": {"prompts": 16, "p50_s": 2.5 if big else 0.75, "p95_s": 4.125 if big else 1.5},
        "peak_bytes": 12.5 * size["bytes"],
    }
    held = {"schema": 1, "label": who, "model": f"some/{who}", **size, **speed, "datasets": described}
    write_json(folder / "scores.json", held | ({} if settings is None else {"settings": settings}))


def write_run(folder: Path, name: str, role: str = "student", text: str = "", updates: int = 0) -> Path:
    """Write a complete run folder, with metrics.jsonl if `updates` > 0; `text` is inserted into all untrusted fields."""
    config = {"name": name, "method": "mgsr" if role == "student" else "sft", "training": {"updates": 40}, "note": text}
    description = {
        "schema": 1,
        "name": name + text,
        "method": "mgsr",
        "command": f"redistill run {name}.yaml {text}",
        "status": "finished",
    }
    description |= {
        "created": "2026-11-02T10:00:00+00:00",
        "commit": "abc1234",
        "versions": {"torch": "2.13.0"},
        "config": config,
    }
    description |= {"machine": {"cpu": f"Some CPU {text}", "cores": 2}, "spans": {"backend": "spacy", "model": "f00d" * 16}}
    description |= {
        "data": {"train": {"path": f"dolly.jsonl{text}", "sha256": "f00d" * 16, "rows": 1000, "kept": 990, "rejected": 4}}
    }
    description |= {
        "cost": COST,
        "models": {"teacher": {"name": f"big{text}", "parameters": 1_500_000_000}, "student": {"name": "small"}},
    }
    write_json(folder / "run.json", description)
    if updates:
        write_lines(folder / "metrics.jsonl", metrics(updates))
    write_lines(folder / "revisions.jsonl", [revision(step, text) for step in range(1, 31)])
    write_evaluation(folder, role, text=text)
    if role == "student":
        write_evaluation(folder / "teacher", "teacher", text=text)
        write_evaluation(folder / "before", "before", text=text)
    return folder


def write_method(
    folder: Path,
    scores: Scores,
    method: str = "mgsr",
    seed: int = 10,
    *,
    change: Mapping[str, Any] | None = None,
    text: str = "",
    metrics: Mapping[str, Mapping[str, Any]] | None = None,
) -> Path:
    """Write a finished run for comparisons; `change` replaces entries of run.json by dotted path."""
    evaluation = {"seeds": [10, 20], "limit": None, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "no_repeat_ngram": 6}
    described: dict[str, Any] = {
        "schema": 1,
        "name": f"{method}-{seed}",
        "method": method,
        "status": "finished",
        "commit": "abc1234",
        "machine": {"cpu": "Some CPU", "accelerators": []},
        "config": {
            "name": f"{method}-{seed}",
            "seed": seed,
            "training": {"updates": 150, "batch_size": 16, "precision": "fp32", "evaluate_every": 50},
            "evaluation": evaluation,
            "data": {"tokens": {"prompt_tokens": 96, "response_tokens": 32, "template": "alpaca"}},
        },
        "data": {
            "train": {"source": "train.jsonl", "sha256": "f00d" * 16},
            "kept": {"train": 120, "validation": 64},
        },
        "models": {"teacher": {"name": "big", "parameters": 1_500_000_000}, "student": {"name": "small"}},
        "cost": {
            "updates": 150,
            "sequences": 2400,
            "trained_tokens": 90_000,
            "generated_tokens": 0 if method == "sft" else 40_000,
            "seconds": 30.0,
            "peak_bytes": 800_000_000,
        },
    }
    for name, value in (change or {}).items():
        *path, last = name.split(".")
        section = described
        for part in path:
            section = section.setdefault(part, {})
        section[last] = value
    write_json(folder / "run.json", described)
    write_scores(folder, method, scores, text=text, metrics=metrics)
    flat = {dataset: {10: [30.0 + i for i in range(len(next(iter(by.values()))))]} for dataset, by in scores.items()}
    write_scores(folder / "teacher", "teacher", flat, text=text, settings={"model": "7eac" * 16}, metrics=metrics)
    write_scores(folder / "before", "before", flat, text=text, settings={"model": f"be{seed}" * 10}, metrics=metrics)
    return folder


def write_sweep(folder: Path, gains: Mapping[str, float], seeds: Sequence[int] = (10, 20, 30), prompts: int = 40) -> Path:
    """Write a finished sweep over two data sets; scores are the method's gain, a training-seed effect and noise."""
    runs = []
    for number, (method, gain) in enumerate(gains.items()):
        for seed in seeds:
            scores = {}
            for index, dataset in enumerate(("dolly", "vicuna")):
                hardness = np.random.default_rng(index).uniform(5, 40, prompts)
                rng = np.random.default_rng([number, seed, index])
                level = gain + rng.normal(0, 0.5)
                scores[dataset] = {k: np.clip(hardness + level + rng.normal(0, 4, prompts), 0, 100) for k in (10, 20)}
            write_method(folder / f"{method}-seed{seed}", scores, method, seed)
            runs.append({"label": method, "seed": seed, "folder": f"{method}-seed{seed}"})
    write_json(folder / "sweep.json", {"schema": 1, "name": "toy table", "runs": runs, "baseline": next(iter(gains))})
    return folder


def metrics(updates: int) -> list[dict]:
    lines = []
    for step in range(1, updates + 1):
        fall = 3 * 0.97**step
        line = {
            "kind": "train",
            "step": step,
            "loss": 2 + fall,
            "sft": 1 + fall / 2,
            "divergence": fall / 3,
            "span": 0.02,
            "seconds": 0.5,
        }
        line |= {
            "grad_norm": None if step == 7 else 1 + fall,
            "learning_rate": 5e-4 * (1 - step / updates),
            "tokens_per_s": 900.0,
        }
        line |= {
            "kept_mass": 0.9,
            "kept_classes": 40 + step,
            "upper": 0.8,
            "lower": 0.1,
            "target_only": 0.05,
            "response_length": 40.0,
        }
        lines.append({**line, "origin": {"student": updates - step, "revised": step}})
        if step % 10 == 0:
            lines.append({"kind": "validation", "step": step, "rouge_l": 20 + step / 10, "cross_entropy": 2.0, "kl": 0.4})
    return lines


def revision(step: int, text: str = "") -> dict:
    line = {
        "step": step,
        "sample": step * 7,
        "position": 5,
        "kl": 1.25,
        "prompt": f"Ask {step}. {text}",
        "kept": f"The capital {text}",
    }
    return {
        **line,
        "student_token": f" wrong{text}",
        "teacher_token": f" right{text}",
        "student_tail": f" tail {text}",
        "new_tail": " new",
    }
