"""Silent failures are found: each of the 20 is planted in a tiny recipe, and a sound recipe has no finding."""

import contextlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from redistill.config.run import Run, decode_run, encode_run
from redistill.data.collate import collate
from redistill.data.sequences import SequenceEncoder
from redistill.doctor import Diagnosis, examine
from redistill.doctor.checks import CHECKS
from redistill.doctor.findings import NotExamined, Outcome
from redistill.doctor.subject import Loaded
from redistill.errors import ServerUnavailableError
from redistill.models.lora import adapted_layers, save_student
from redistill.models.vocabulary import VocabularyMatch
from redistill.runs.models import shared_vocabulary
from redistill.runs.opened import assemble
from redistill.teachers.local import LocalTeacher
from redistill.training.objective import Counts, terms
from tests.worlds import GPT2, LLAMA, rows, tiny_run, write_model, write_rows

ROOT = Path(__file__).parents[2]
TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.role == 'assistant' %}END{% endif %}{% endfor %}"
CHAT = TURNS + "{% if add_generation_prompt %}<assistant>{% endif %}"
ENDED = CHAT.replace("END", "{{ eos_token }}")
LORA: Mapping[str, Any] = {"lora": {"rank": 4, "alpha": 16.0}}


def found(run: Run) -> dict[int, tuple[str, ...]]:
    """The findings of a recipe, one line each, by the number of their check."""
    diagnosis = examine(run)
    assert [outcome.number for outcome in diagnosis.outcomes] == list(range(1, 21))
    return {outcome.number: tuple(f.line for f in outcome.findings) for outcome in diagnosis.outcomes if outcome.findings}


def set_template(folder: Path, template: str, *names: str) -> None:
    """Set the chat template of models, which are created if they do not exist."""
    for name, seed in (("teacher", 1), ("student", 2)):
        if not (folder / name).exists():
            write_model(folder / name, LLAMA, seed)
    for name in names or ("teacher", "student"):
        tokenizer = AutoTokenizer.from_pretrained(folder / name)
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder / name)


def chat_run(folder: Path, template: str, **sections: Any) -> Run:
    """A run with a chat template."""
    set_template(folder, template)
    tokens = {"prompt_tokens": 80, "response_tokens": 40, "template": "chat"}
    return tiny_run(folder, "kd", **{**sections, "data": {"tokens": tokens, **sections.get("data", {})}})


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors of a model's file."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


# --- sound recipes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["sft", "kd", "seqkd", "imitkd", "gkd", "minillm", "distillm", "mgsr", "mgsr-robust"])
def test_a_sound_recipe_has_no_finding_and_writes_nothing_into_its_folder(tmp_path: Path, method: str) -> None:
    run = tiny_run(tmp_path, method, optimiser={"warmup_updates": 0})
    before = sorted(tmp_path.rglob("*"))
    assert found(run) == {}
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "sections",
    [
        {"student": LORA},
        {"student": {"lora": {"rank": 4, "alpha": 16.0, "export": "adapter"}}},
        {"student": {"model": "teacher", "initialise": {"layers": 2}}},
        {"student": {"dtype": "bfloat16"}, "training": {"precision": "bf16"}},
        {"student": {"gradient_checkpointing": True}, "training": {"micro_batch_size": 1}},
        {"data": {"tokens": {"prompt_tokens": 80, "response_tokens": 40, "supervise": "every"}}},
    ],
    ids=["adapters", "adapters alone", "layers", "bfloat16", "recomputed activations", "every answer"],
)
def test_other_settings_of_a_sound_recipe_have_no_finding(tmp_path: Path, sections: dict[str, Any]) -> None:
    assert found(tiny_run(tmp_path, "kd", **sections)) == {}


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_a_chat_template_without_fault_has_no_finding(tmp_path: Path, config: Mapping[str, Any]) -> None:
    for name, seed in (("teacher", 1), ("student", 2)):
        write_model(tmp_path / name, config, seed)
    turns = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "In the barn."}]
    talk = [
        {"messages": [*turns, {"role": "user", "content": f"And {i}?"}, {"role": "assistant", "content": "There."}]}
        for i in range(9)
    ]
    tokens = {"prompt_tokens": 80, "response_tokens": 40, "template": "chat", "supervise": "every"}
    data = {
        "train": [write_rows(tmp_path / "talk.jsonl", talk)],
        "validation": write_rows(tmp_path / "held.jsonl", talk),
        "tokens": tokens,
    }
    assert found(chat_run(tmp_path, ENDED, data=data)) == {}


def test_checks_that_do_not_apply_say_so(tmp_path: Path) -> None:
    outcomes = {o.number: o for o in examine(tiny_run(tmp_path, "sft", teacher=None)).outcomes}
    unexamined = {number: outcome.reason for number, outcome in outcomes.items() if outcome.status == "not examined"}
    assert unexamined == dict.fromkeys((10, 11, 12, 13), "the recipe has no teacher")


def test_a_stage_that_is_not_trained_yet_is_examined_before_its_fine_tuning(tmp_path: Path) -> None:
    phases: list[str] = []
    run = tiny_run(tmp_path, "kd", teacher={"model": str(tmp_path / "teacher"), "finetune": {"updates": 2}})
    assert examine(run, phases.append).num_findings == 0
    assert "stage teacher: is not trained yet; the model is examined without this fine-tuning" in phases


def test_a_trained_stage_is_examined(tmp_path: Path) -> None:
    phases: list[str] = []
    tuned = {"finetune": {"updates": 2}}
    run = tiny_run(
        tmp_path, "kd", teacher={"model": str(tmp_path / "teacher"), **tuned},
        student={"model": str(tmp_path / "student"), "start": "finetuned", **tuned},
    )  # fmt: skip
    for stage, seed in (("teacher", 1), ("start", 2)):
        write_model(tmp_path / f"run-{stage}" / "model", LLAMA, seed)
    for stage in ("teacher", "student"):
        (tmp_path / stage / "model.safetensors").unlink()  # only the fine-tuned models can be loaded
    assert examine(run, phases.append).num_findings == 0
    assert not any("not trained yet" in phase for phase in phases)


# --- planted failures: texts --------------------------------------------------------------------------------------------


def test_1_another_template_in_evaluation_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("redistill.data.sequences.render_prompt", lambda prompt, template, tokenizer, settings: "### Response:")
    lines = found(tiny_run(tmp_path, "kd"))
    assert "another prompt than training: 24 of 24 prompts differ" in lines[1][0]


def test_1_another_template_in_the_export_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, save = chat_run(tmp_path, ENDED), PreTrainedTokenizerFast.save_pretrained

    def forgetful(self: Any, folder: Path) -> None:
        save(self, folder)
        (Path(folder) / "chat_template.jinja").write_text(CHAT)

    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", forgetful)
    assert "its chat template differs" in found(run)[1][0]


def test_1_a_chat_template_beside_alpaca_prompts_is_a_note(tmp_path: Path) -> None:
    set_template(tmp_path, ENDED)
    first = examine(tiny_run(tmp_path, "kd")).outcomes[0]
    assert first.status == "passed" and "training uses the Alpaca template" in first.notes[0].line


def test_2_an_answer_that_ends_with_plain_text_is_found(tmp_path: Path) -> None:
    (line,) = found(chat_run(tmp_path, CHAT))[2]
    assert "24 of 24 rows is 'D' or another token; expected an end token: '<|endoftext|>'" in line


def test_2_answers_that_are_all_truncated_are_found_and_some_are_a_note(tmp_path: Path) -> None:
    tokens = {"prompt_tokens": 80, "response_tokens": 3}
    assert "24 of 24 rows" in found(tiny_run(tmp_path, "kd", data={"tokens": tokens}))[2][0]
    mixed = write_rows(tmp_path / "mixed.jsonl", [*rows(5), {"instruction": "a", "output": "b " * 60}])
    outcome = examine(tiny_run(tmp_path, "kd", data={"train": [mixed]})).outcomes[1]
    assert outcome.status == "passed" and "1 of 6 rows" in outcome.notes[0].line


def test_3_an_end_token_that_is_masked_as_padding_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def masking(items: Any, *, pad_id: int, **options: Any) -> Any:
        for item in items:
            marks = tuple(m and t != pad_id for m, t in zip(item.sequence.supervised, item.sequence.token_ids))
            object.__setattr__(item.sequence, "supervised", marks)
        return collate(items, pad_id=pad_id, **options)

    monkeypatch.setattr("redistill.training.loop.collate", masking)
    assert "0 end tokens are targets" in found(tiny_run(tmp_path, "kd"))[3][0]


@pytest.mark.parametrize("answer", ["", "  ", None])
def test_4_a_row_without_an_answer_is_found(tmp_path: Path, answer: str | None) -> None:
    bad = write_rows(tmp_path / "bad.jsonl", [*rows(8), {"instruction": "Where is it?", "output": answer}])
    lines = found(tiny_run(tmp_path, "kd", data={"train": [bad]}))
    assert "1 of 9 rows, the first in line 9" in lines[4][0]


def test_4_a_row_that_the_chat_template_rejects_is_found(tmp_path: Path) -> None:
    rejecting = "{% if 'owl 2' in messages[0].content %}{{ raise_exception('no owls') }}{% endif %}" + ENDED
    assert "no owls" in found(chat_run(tmp_path, rejecting))[4][0]


def test_5_prompt_tokens_among_the_targets_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spelled = SequenceEncoder.spelled

    def everything(self: Any, records: Any, seed: int, sample: int) -> Any:
        for found in spelled(self, records, seed, sample):
            yield found._replace(supervised=[False, *[True] * (len(found.ids) - 1)])

    monkeypatch.setattr(SequenceEncoder, "spelled", everything)
    assert "24 of 24 rows; the first one's targets begin with ' is an instruction" in found(tiny_run(tmp_path, "kd"))[5][0]


def test_5_text_that_the_template_inserts_before_an_answer_is_a_note(tmp_path: Path) -> None:
    outcome = examine(chat_run(tmp_path, ENDED.partition("{% if add_generation_prompt")[0])).outcomes[4]
    assert outcome.status == "passed" and "'<assistant>' is among the targets" in outcome.notes[0].line


def test_6_two_bos_tokens_are_found(tmp_path: Path) -> None:
    doubled = "{{ bos_token }}{{ bos_token }}" + ENDED
    assert "begin with '<|endoftext|><|endoftext|>" in found(chat_run(tmp_path, doubled))[6][0]
    assert 6 not in found(chat_run(tmp_path, "{{ bos_token }}" + ENDED))


@pytest.mark.parametrize("where", ["instruction", "input", "output"])
def test_7_a_special_token_in_the_text_of_a_row_is_found(tmp_path: Path, where: str) -> None:
    row = {"instruction": "Where is it?", "input": "a", "output": "Here."}
    planted = write_rows(tmp_path / "planted.jsonl", [*rows(8), {**row, where: "one <|endoftext|> two"}])
    assert 7 not in found(chat_run(tmp_path, ENDED, data={"train": [planted]}))  # in messages it is text
    raw = write_rows(tmp_path / "raw.jsonl", [*rows(8), {"prompt": "Where?", "completion": "one <|endoftext|> two"}])
    assert "raw:9 has a special token in its text: 1 of " in found(tiny_run(tmp_path, "kd", data={"train": [raw]}))[7][0]
    outcome = examine(tiny_run(tmp_path, "kd", data={"train": [planted]})).outcomes[6]  # Alpaca encodes it as text
    assert outcome.status == "passed" and len(outcome.notes) == (where == "output")


def test_8_a_lost_response_header_is_found(tmp_path: Path) -> None:
    short = write_rows(tmp_path / "short.jsonl", [{"prompt": f"{i}:", "completion": "Yes."} for i in range(9)])
    tokens = {"prompt_tokens": 3, "response_tokens": 16}
    data = {"train": [short], "validation": short, "tokens": tokens}
    assert "3 of 3 prompts with prompt_tokens = 3" in found(tiny_run(tmp_path, "kd", data=data))[8][0]


# --- planted failures: models -------------------------------------------------------------------------------------------


def test_9_other_token_ids_are_found(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, "kd")
    path = tmp_path / "student" / "tokenizer.json"
    tree = json.loads(path.read_text())
    vocabulary = tree["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(tree))
    lines = found(run)
    assert "'a' in the teacher and 'b' in the student" in lines[9][0]


def test_10_padded_rows_that_are_not_cut_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path / "teacher", LLAMA, 1, vocab_size=640)
    run = tiny_run(tmp_path, "kd")
    assert found(run) == {}

    def uncut(*arguments: Any) -> VocabularyMatch:
        match = shared_vocabulary(*arguments)
        return replace(match, size=match.teacher_size)

    monkeypatch.setattr("redistill.runs.models.shared_vocabulary", uncut)
    assert "640 classes of the teacher" in found(run)[10][0]


def test_11_a_teacher_in_training_mode_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Trained(LocalTeacher):
        def __init__(self, model: Any, **options: Any) -> None:
            super().__init__(model, **options)
            model.train()

    monkeypatch.setattr("redistill.runs.opened.LocalTeacher", Trained)
    line = found(tiny_run(tmp_path, "kd", config=GPT2))[11][0]
    assert float(re.findall(r"two passes differ by up to ([\d.e+-]+);", line)[0]) > 0


def test_12_a_teacher_that_is_worse_than_the_student_is_found(tmp_path: Path) -> None:
    write_model(tmp_path / "teacher", LLAMA, 1, initializer_range=1.0)
    assert "the teacher is no better than the student" in found(tiny_run(tmp_path, "kd"))[12][0]


def test_12_and_15_a_teacher_that_is_the_student_is_found(tmp_path: Path) -> None:
    lines = found(tiny_run(tmp_path, "kd", student={"model": "teacher", "initialise": {"layers": 3}}))
    assert set(lines) == {12, 15}
    assert "the term divergence has the weight" in lines[15][0]


def test_13_another_chat_template_is_found(tmp_path: Path) -> None:
    set_template(tmp_path, CHAT, "teacher")
    set_template(tmp_path, ENDED, "student")
    assert "different chat templates" in found(tiny_run(tmp_path, "kd"))[13][0]


def test_13_another_end_token_is_found(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, "kd")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "student")
    tokenizer.eos_token = "."
    tokenizer.save_pretrained(tmp_path / "student")
    assert "end token is '<|endoftext|>' and the student's '.'" in found(run)[13][0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_19_weights_that_are_not_finite_are_named(tmp_path: Path, bad: float) -> None:
    for name, seed in (("teacher", 1), ("student", 2)):
        write_model(tmp_path / name, LLAMA, seed, tie_word_embeddings=False)
    run = tiny_run(tmp_path, "kd")
    row = AutoTokenizer.from_pretrained(tmp_path / "student")(".")["input_ids"][-1]
    for name in ("student", "teacher"):
        change_weights(tmp_path / name, lambda tensors: tensors["model.embed_tokens.weight"][row].fill_(bad))
        assert "model.embed_tokens.weight" in found(run)[19][0] and "NaN or infinite" in found(run)[19][0]


def test_19_a_model_with_infinite_logits_is_refused_with_that_reason(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, "kd")
    change_weights(tmp_path / "student", lambda tensors: tensors["model.norm.weight"].fill_(3e38))
    assert "its logits are not finite" in found(run)[19][0]


def test_18_missing_weights_are_found(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, "kd")
    change_weights(tmp_path / "student", lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    lines = found(run)
    assert list(lines) == [18] and "model.layers.1.mlp.up_proj.weight" in lines[18][0]


# --- planted failures: learning -----------------------------------------------------------------------------------------


def test_14_a_student_without_trainable_parameters_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("redistill.runs.models.add_lora", lambda model, lora, seed: model.requires_grad_(False))
    monkeypatch.setattr("redistill.runs.models.lora_notes", lambda model: [])
    assert "0 trainable parameters" in found(tiny_run(tmp_path, "kd", student=LORA))[14][0]


@pytest.mark.parametrize("student", [{}, LORA], ids=["all weights", "adapters"])
def test_14_a_layer_without_gradient_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, student: Mapping[str, Any]
) -> None:
    def cut(*arguments: Any) -> Any:
        opened = assemble(*arguments)
        layer = next(m for n, m in opened.models.student.named_modules() if n.endswith("model.layers.1"))
        layer.register_forward_hook(lambda module, inputs, output: output.detach())
        return opened

    monkeypatch.setattr("redistill.doctor.subject.assemble", cut)
    assert "norm 0 in layer 0, 1 of 3" in found(tiny_run(tmp_path, "kd", student=student))[14][0]


def test_14_an_objective_that_does_not_reach_the_student_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(*arguments: Any) -> Any:
        opened = assemble(*arguments)
        opened.models.student.get_base_model().model.norm.register_forward_hook(lambda module, inputs, output: output.detach())
        return opened

    monkeypatch.setattr("redistill.doctor.subject.assemble", cut)
    lines = found(tiny_run(tmp_path, "kd", config={**LLAMA, "tie_word_embeddings": False}, student=LORA))
    assert "the adapters get no gradient" in lines[14][0] and list(lines) == [14]


def test_15_a_span_loss_on_answers_without_phrases_is_found(tmp_path: Path) -> None:
    plain = write_rows(tmp_path / "plain.jsonl", [{"instruction": f"Is it {i}?", "output": "?!"} for i in range(9)])
    objective = {"divergence": {"kind": "forward_kl"}, "span_weight": 1.0, "span": {"vectors": "full"}}
    lines = found(tiny_run(tmp_path, "kd", objective=objective, data={"train": [plain]}))
    assert "the term span has the weight 1" in lines[15][0]


def test_16_an_update_that_depends_on_the_micro_batch_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def own_counts(objective: Any, counts: Any, batch: Any, *rest: Any) -> Any:
        return terms(objective, Counts.of([batch]), batch, *rest)

    monkeypatch.setattr("redistill.training.loop.terms", own_counts)
    assert "the update depends on the size of the micro-batches" in found(tiny_run(tmp_path, "kd"))[16][0]


def test_16_a_divergence_that_depends_on_other_rows_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "averaging.py").write_text(
        "from dataclasses import dataclass\n\n\n@dataclass(frozen=True, kw_only=True)\nclass Averaged:\n"
        "    @classmethod\n    def examples(cls):\n        return (cls(),)\n\n"
        "    def __call__(self, logq_NV, logp_NV):\n"
        "        return (logp_NV.exp() * (logp_NV - logq_NV)).sum(-1) / len(logq_NV)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    tree = encode_run(tiny_run(tmp_path, "kd"))
    tree["objective"] = {"divergence": {"kind": "averaging:Averaged"}}
    lines = found(decode_run(tree, "tiny", ["averaging"]))
    assert list(lines) == [16]


def test_15_a_span_loss_in_bfloat16_has_an_effect(tmp_path: Path) -> None:
    bf16 = {"teacher": {"model": str(tmp_path / "teacher"), "dtype": "bfloat16"}, "training": {"precision": "bf16"}}
    assert found(tiny_run(tmp_path, "mgsr", **bf16)) == {}


def test_17_an_export_without_the_adapters_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_adapters(model: Any, *arguments: Any, **options: Any) -> None:
        layers = adapted_layers(model).values()
        scales = [dict(layer.scaling) for layer in layers]
        for layer in layers:
            layer.scaling = dict.fromkeys(layer.scaling, 0.0)
        save_student(model, *arguments, **options)
        for layer, scale in zip(layers, scales, strict=True):
            layer.scaling = scale

    monkeypatch.setattr("redistill.doctor.export.save_student", without_adapters)
    assert "the exported student differs" in found(tiny_run(tmp_path, "kd", student=LORA))[17][0]


def test_17_an_export_of_other_weights_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaging(model: Any, tokenizer: Any, folder: Path, *arguments: Any) -> None:
        save_student(model, tokenizer, folder, *arguments)
        change_weights(folder, lambda tensors: tensors["model.layers.0.mlp.down_proj.weight"].zero_())

    monkeypatch.setattr("redistill.doctor.export.save_student", damaging)
    assert list(found(tiny_run(tmp_path, "kd"))) == [17]


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        ({"optimiser": {"warmup_updates": 4}}, "optimiser.warmup_updates = 4, training.updates = 4"),
        ({"optimiser": {"warmup_updates": 100}}, "optimiser.warmup_updates = 100"),
        (
            {"training": {"updates": 4, "batch_size": 4, "evaluate_every": "2 epochs"}},
            "2 epochs = 12 updates, and the run has 4",
        ),
        ({"training": {"updates": 4, "batch_size": 4, "save_every": 5}}, "5 = 5 updates"),
        ({"training": {"updates": 4, "batch_size": 4, "evaluate_every": 2, "patience": 2}}, "patience = 2"),
    ],
)
def test_20_a_schedule_that_is_longer_than_the_run_is_found(tmp_path: Path, sections: dict[str, Any], named: str) -> None:
    lines = found(tiny_run(tmp_path, "kd", **sections))
    assert list(lines) == [20] and named in lines[20][0]


def test_20_a_schedule_that_fits_has_no_finding(tmp_path: Path) -> None:
    training = {"updates": 4, "batch_size": 4, "evaluate_every": 1, "patience": 2, "save_every": 4}
    assert found(tiny_run(tmp_path, "kd", optimiser={"warmup_updates": 3}, training=training)) == {}


# --- the table ----------------------------------------------------------------------------------------------------------


def test_there_are_20_checks_and_each_is_planted_here() -> None:
    assert [check.number for check in CHECKS] == list(range(1, 21))
    planted = {int(n) for name in globals() for n in re.findall(r"^test_(\d+)_|_and_(\d+)_", name) for n in n if n}
    assert planted == set(range(1, 21))


@pytest.mark.parametrize("check", [check for check in CHECKS if check.proof], ids=lambda check: str(check.number))
def test_a_proof_is_a_test_that_exists(check: Any) -> None:
    path, _, name = check.proof.partition("::")
    assert f"\ndef {name}(" in (ROOT / path).read_text(encoding="utf-8")


def test_the_page_lists_every_check_with_its_proof() -> None:
    _, _, text = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8").partition("## The checks")
    for check in CHECKS:
        (line,) = re.findall(rf"^\| {check.number} \|.*$", text, re.MULTILINE)
        assert check.name in line and check.examines in line and check.proof in line


def test_an_error_of_a_check_is_a_finding_and_no_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("a fault\nof a library")

    monkeypatch.setattr("redistill.doctor.gradient.gradients", broken)
    lines = found(tiny_run(tmp_path, "kd"))
    assert set(lines) == {14, 15, 16, 19} and "the check ended with an error: RuntimeError: a fault; expected" in lines[14][0]


def test_a_diagnosis_is_json(tmp_path: Path) -> None:
    diagnosis = examine(tiny_run(tmp_path, "kd", optimiser={"warmup_updates": 9}), clock=iter([1.0, 3.5]).__next__)
    assert isinstance(diagnosis, Diagnosis) and diagnosis.seconds == 2.5
    tree = json.loads(json.dumps(diagnosis.as_json()))
    last: Mapping[str, Any] = tree["checks"][-1]
    assert (tree["findings"], last["status"], len(last["findings"])) == (1, "found", 1)
    assert all(isinstance(outcome, Outcome) for outcome in diagnosis.outcomes)


@pytest.fixture(autouse=True)
def _without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with contextlib.suppress(AttributeError):
        torch.manual_seed(0)


def test_a_server_that_failed_in_one_check_is_not_contacted_in_the_next() -> None:
    contacted = list[int]()

    def sync(student: object, step: int) -> None:
        contacted.append(step)
        raise ServerUnavailableError("server 127.0.0.1:1: no valid reply; gave up after 30 attempts")

    engine, student = SimpleNamespace(sync=sync), torch.nn.Linear(1, 1)
    opened = SimpleNamespace(student=student, engine=engine, models=SimpleNamespace(student=student))
    loaded = Loaded(opened=opened, parts=SimpleNamespace())  # type: ignore[arg-type]
    with pytest.raises(ServerUnavailableError):
        _ = loaded.draw
    for _ in range(2):
        with pytest.raises(NotExamined, match="a server failed in another check"):
            _ = loaded.gradient
    assert contacted == [0]
