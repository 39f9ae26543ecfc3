"""The model card states method, data, licences, scores with intervals and the command; its texts are escaped."""

import json

import yaml

from redistill.reports.card import model_card
from tests.reports.fabricated import write_run

HOSTILE = "\x1b[31m</code><script>alert(1)</script> [x](https://evil.example) | `a` \u202e hf_abcdefghijklmnop1234"


def metadata(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_the_card_of_a_run_states_what_was_done(tmp_path):
    card = model_card(write_run(tmp_path / "run", "first"), "first", target="gguf", licences={"big": "mit", "small": "mit"})
    assert metadata(card) == {
        "license": "mit",
        "library_name": "gguf",
        "pipeline_tag": "text-generation",
        "tags": ["redistill", "knowledge-distillation"],
    }
    for text in ("# first", "method mgsr", "| teacher | big | 1.5 B |", "| train | dolly.jsonl | 1000 |", "- big: mit"):
        assert text in card
    assert "    redistill run first.yaml" in card  # a code block
    line = next(line for line in card.splitlines() if line.startswith("| dolly | ROUGE-L | first |"))
    assert "±" in line and " to " in line and line.count("|") == 7


def test_the_licence_is_left_open_unless_all_models_have_the_same(tmp_path):
    run = write_run(tmp_path / "run", "first")
    for licences in ({"a": "mit", "b": "apache-2.0"}, {"a": "unknown: check"}, {"a": "x: [y]\nz"}):
        card = model_card(run, "first", target="transformers", licences=licences)
        assert "license" not in metadata(card)


def test_texts_of_a_run_are_escaped(tmp_path):
    card = model_card(
        write_run(tmp_path / "run", "first", text=HOSTILE), HOSTILE, target="adapter", licences={HOSTILE: HOSTILE}
    )
    assert "\x1b" not in card and "\u202e" not in card and "hf_abcdefghijklmnop1234" not in card
    body = "\n".join(line for line in card.splitlines() if not line.startswith("    "))
    assert "<script" not in body.replace("\\<", "") and "[x](" not in body.replace("\\[", "")
    assert metadata(card)["library_name"] == "peft"


def test_a_student_from_layers_of_its_teacher_is_based_on_the_teacher(tmp_path):
    run = write_run(tmp_path / "run", "first")
    described = json.loads((run / "run.json").read_text())
    described["config"] |= {"teacher": {"model": "owner/big"}, "student": {"model": "teacher"}}
    described["models"]["student"]["name"] = "teacher"
    (run / "run.json").write_text(json.dumps(described))
    card = model_card(run, "first", target="transformers", licences={})
    assert metadata(card)["base_model"] == "owner/big" and "| student | layers of the teacher |" in card


def test_the_card_of_another_model_is_short():
    card = model_card(None, "mine", target="transformers", licences={"mine": "unknown: check"})
    assert "No scores were measured" in card and "unknown: check" in card and "Repeat" not in card
