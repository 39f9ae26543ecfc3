"""Every file of docs/adding/, run from outside the package as on the page."""

import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from redistill.cli.main import main
from redistill.config.run import encode_run
from tests.worlds import LLAMA, tiny_run

PAGES = sorted((Path(__file__).parents[2] / "docs/adding").glob("*.md"))
TEXT = "\n".join(path.read_text(encoding="utf-8") for path in PAGES)
FILES = dict(re.findall(r"```python\n# (\w+)\.py\n(.*?)```", TEXT, re.DOTALL))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with the files of the page in it; imported modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name, code in FILES.items():
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
    yield tmp_path
    for name in FILES:
        sys.modules.pop(name, None)


def recipe(folder: Path, method: str = "gkd", **sections: Any) -> Path:
    """A tiny run as a recipe, with some sections replaced."""
    tree = encode_run(tiny_run(folder, method))
    for name in ("policy", "objective"):
        tree.pop(name)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**tree, "out": str(folder / "out"), **sections}), encoding="utf-8")
    return path


def run(folder: Path, capsys: pytest.CaptureFixture[str], module: str, *, command: str = "train", **sections: Any) -> str:
    """Run a recipe with a module allowed; returns stderr and expects exit code 0."""
    code = main([command, str(recipe(folder, **sections)), "--allow-code", module])
    printed = capsys.readouterr().err
    assert code == 0, printed
    return printed


def rejected(folder: Path, capsys: pytest.CaptureFixture[str], module: str, **sections: Any) -> str:
    """The one line that a recipe is rejected with, before anything is written."""
    path = recipe(folder, **sections)
    capsys.readouterr()
    assert main(["train", str(path), "--allow-code", module]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert not (folder / "out").exists()
    return lines[0]


def test_the_page_has_an_example_of_every_extension_point():
    kinds = ("divergence", "policy", "metric", "task", "engine", "teacher", "family")
    assert {f"my_{kind}" for kind in kinds} == FILES.keys()


def test_code_of_the_page_is_rejected_unless_allowed(folder, capsys):
    path = recipe(folder, engine={"kind": "my_engine:FixedText"})
    assert main(["train", str(path)]) == 2
    assert "--allow-code my_engine" in capsys.readouterr().err
    assert "my_engine" not in sys.modules


def test_a_divergence(folder, capsys):
    run(folder, capsys, "my_divergence", objective={"sft_weight": 0.0, "divergence": {"kind": "my_divergence:Hellinger"}})
    lines = [json.loads(line) for line in (folder / "out" / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < line["divergence"] < 1 for line in lines if line["kind"] == "train")


def test_a_policy(folder, capsys):
    run(folder, capsys, "my_policy", policy={"kind": "my_policy:WarmUp", "updates": 2})
    lines = [json.loads(line) for line in (folder / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [list(line["origin"]) for line in lines if line["kind"] == "train"] == [["dataset"]] * 2 + [["student"]] * 2


@pytest.fixture
def calls(folder, monkeypatch) -> list[tuple[str, int]]:
    """The calls of the page's engine, in order."""
    sys.path.append(str(folder))
    import my_engine

    assert isinstance(my_engine, ModuleType)
    made: list[tuple[str, int]] = []
    engine = my_engine.FixedTextEngine
    generate = engine.generate

    def noted_generate(self, requests, sampling):
        made.append(("generate", len(requests)))
        return generate(self, requests, sampling)

    monkeypatch.setattr(engine, "sync", lambda self, student, step: made.append(("sync", step)))
    monkeypatch.setattr(engine, "generate", noted_generate)
    return made


def test_an_engine_is_synchronised_once_an_update_before_the_draw(folder, capsys, calls):
    run(folder, capsys, "my_engine", method="imitkd", engine={"kind": "my_engine:FixedText"})
    assert calls == [call for step in range(4) for call in (("sync", step), ("generate", 4))]
    described = json.loads((folder / "out" / "run.json").read_text())
    assert described["config"]["engine"] == {"kind": "my_engine:FixedText", "text": "The cat is sleeping."}
    assert described["cost"]["generated_tokens"] > 0


def test_a_policy_of_mixtures_is_rejected_with_an_engine_that_has_none(folder, capsys):
    line = rejected(folder, capsys, "my_engine", method="minillm", engine={"kind": "my_engine:FixedText"})
    assert "mixture" in line and "engine local" in line


@pytest.mark.parametrize("method", ["kd", "gkd"])
def test_a_teacher_of_top_classes(folder, capsys, method):
    teacher = {"kind": "my_teacher:TopK", "model": str(folder / "teacher"), "k": 64}
    run(folder, capsys, "my_teacher", method=method, teacher=teacher)
    lines = [json.loads(line) for line in (folder / "out" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["divergence"] > 0 for line in lines if line["kind"] == "train")


def test_mgsr_is_rejected_with_a_teacher_of_top_classes(folder, capsys):
    teacher = {"kind": "my_teacher:TopK", "model": str(folder / "teacher")}
    line = rejected(folder, capsys, "my_teacher", method="mgsr", teacher=teacher)
    assert "whole vocabulary" in line and "64 most probable classes" in line and "use a local teacher" in line


def test_layers_of_a_teacher_need_a_local_teacher(folder, capsys):
    teacher = {"kind": "my_teacher:TopK", "model": str(folder / "teacher")}
    student = {"model": "teacher", "initialise": {"layers": 1}}
    line = rejected(folder, capsys, "my_teacher", method="kd", teacher=teacher, student=student)
    assert "student.model = 'teacher'" in line


def test_a_metric_chooses_the_checkpoint_and_is_in_log_scores_report_and_comparison(folder, capsys):
    evaluation = {"seeds": [10], "compare": [], "metrics": ["rouge_l", "my_metric:METRIC"]}
    training = {"updates": 2, "batch_size": 4, "evaluate_every": 1, "choose_by": "word_recall"}
    printed = run(folder, capsys, "my_metric", command="run", evaluation=evaluation, training=training)
    assert "word recall" in printed
    out = folder / "out"
    assert all(
        "word_recall" in line
        for line in map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
        if line["kind"] == "validation"
    )
    scores = json.loads((out / "scores.json").read_text())["datasets"]["toy"]
    assert scores["metrics"]["word_recall"] == {"title": "word recall", "unit": "fraction", "better": "higher"}
    assert "word_recall" in scores["seeds"]["10"]
    assert "word recall" in (out / "report.html").read_text()
    assert main(["compare", str(out), "--output", str(folder / "compare.csv")]) == 0
    assert "word_recall" in (folder / "compare.csv").read_text()


def test_a_test_set_with_a_metric_of_its_own(folder, capsys):
    data = encode_run(tiny_run(folder, "sft"))["data"]
    data["tests"] = {"my_task:TASK": data["tests"]["toy"]}
    run(folder, capsys, "my_task", command="run", data=data)
    scores = json.loads((folder / "out" / "scores.json").read_text())["datasets"]["lengths"]
    assert list(scores["metrics"]) == ["length_error", "rouge_l", "exact_match"]
    assert "length error" in (folder / "out" / "report.html").read_text()


SCALED = {**LLAMA, "model_type": "scaled_llama"}


@pytest.fixture
def family(folder):
    """The family of the page is registered, and afterwards unknown again."""
    sys.path.append(str(folder))
    yield lambda: __import__("my_family")
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    CONFIG_MAPPING._extra_content.pop("scaled_llama", None)
    for config in [key for key in MODEL_FOR_CAUSAL_LM_MAPPING._extra_content if key.model_type == "scaled_llama"]:
        del MODEL_FOR_CAUSAL_LM_MAPPING._extra_content[config]


def test_a_model_family_is_trained_and_keeps_its_type(folder, family):
    family()
    tree = encode_run(tiny_run(folder, "gkd", config=SCALED, out="out"))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    (script,) = re.findall(r"```python\n(from pathlib import Path\n.*?)```", TEXT, re.DOTALL)
    exec(script, {})  # noqa: S102 - our own page
    written = json.loads((folder / "out/model/config.json").read_text())
    assert (written["model_type"], written["logit_scale"]) == ("scaled_llama", 0.25)


def test_a_family_that_scales_its_logits_by_an_unknown_field_is_rejected_by_the_line_of_the_page(folder, family, capsys):
    code = FILES["my_family"].replace("logit_scale", "output_factor")
    (folder / "my_family.py").write_text(code, encoding="utf-8")
    family()
    tree = encode_run(tiny_run(folder, "gkd", config=SCALED, out="out"))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    (line,) = re.findall(r"```text\nstudent: (the scaled_llama family .*)\n```", TEXT)
    assert main(["train", str(folder / "recipe.yaml")]) == 2
    assert line in capsys.readouterr().err
