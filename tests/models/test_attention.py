"""The attention implementation is a setting that falls back; an unset one changes nothing, not even the identity of a run."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from redistill.config.run import encode_run
from redistill.models import attention as attention_module
from redistill.models import load
from redistill.models.attention import FLASH, Attention, attention_note, attention_of
from redistill.models.families import body, text_config
from redistill.models.load import ModelConfig, load_model
from redistill.runs.identity import _without_unset
from redistill.runs.models import load_models
from tests.worlds import LLAMA, tiny_run, write_model

IDS_BT = torch.arange(12).reshape(2, 6)


def test_implementations_give_the_same_hidden_states(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", LLAMA, 1)
    models = {name: load_model(ModelConfig(model=folder, attention=name))[0] for name in ("eager", "sdpa")}
    assert {name: text_config(model)._attn_implementation for name, model in models.items()} == {
        "eager": "eager",
        "sdpa": "sdpa",
    }
    with torch.no_grad():
        eager, sdpa = (body(model)(IDS_BT, torch.ones_like(IDS_BT)) for model in models.values())
    torch.testing.assert_close(eager, sdpa, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("student", [{"model": "teacher", "initialise": {"layers": 2}}, {}])
def test_each_model_of_a_run_has_its_own_implementation(tmp_path: Path, student: dict[str, object]) -> None:
    run = tiny_run(tmp_path, teacher={"attention": "eager"}, student={"attention": "sdpa", **student})
    models = load_models(run)
    assert models.teacher is not None
    assert text_config(models.teacher)._attn_implementation == "eager"
    assert text_config(models.student)._attn_implementation == "sdpa"


@pytest.mark.parametrize(("has_gpu", "missing"), [(False, "needs a GPU"), (True, "needs the package flash_attn")])
def test_flash_attention_falls_back_without_a_gpu_or_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_gpu: bool, missing: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    model, _ = load_model(ModelConfig(model=write_model(tmp_path / "model", LLAMA, 1), attention=FLASH))
    assert attention_of(model) == "sdpa"
    note = attention_note(model, FLASH, "teacher")
    assert note is not None and note.startswith(f"the teacher uses attention = 'sdpa', since 'flash_attention_2' {missing}")


def test_a_run_reports_and_records_the_attention_that_it_uses(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, teacher={"attention": FLASH}, student={"attention": "eager"})
    models = load_models(run)
    notes = [note for note in models.notes if "attention" in note]
    assert notes == ["the teacher uses attention = 'sdpa', since 'flash_attention_2' needs a GPU"]
    used = {role: about["attention"] for role, about in models.manifest.items() if isinstance(about, dict)}
    assert used == {"teacher": "sdpa", "student": "eager"}


def test_flash_attention_is_set_after_the_checks_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, done = write_model(tmp_path / "model", LLAMA, 1), []
    found = importlib.util.find_spec
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: name == "flash_attn" or found(name, *rest))
    check_cache = load.check_cache
    monkeypatch.setattr(load, "check_cache", lambda *args, **options: (check_cache(*args, **options), done.append("checked")))
    monkeypatch.setattr(load, "use_attention", lambda model, attention: done.append(attention))
    load_model(ModelConfig(model=folder, attention="flash_attention_2"))
    assert done == ["checked", "flash_attention_2"]


@pytest.mark.parametrize("attention", ["sdpa", FLASH])
def test_a_family_without_an_implementation_falls_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attention: Attention
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: name == "flash_attn" or found(name, *rest))
    monkeypatch.setattr(attention_module, "torch", SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: True)))
    config = {"model_type": "bloom", "hidden_size": 32, "n_layer": 2, "n_head": 4}
    model, _ = load_model(ModelConfig(model=write_model(tmp_path / "model", config, 1), attention=attention))
    assert attention_of(model) == "eager"
    expected = f"the student uses attention = 'eager', since '{attention}' is not supported by the bloom family"
    assert attention_note(model, attention, "student") == expected


def test_a_setting_that_is_not_set_is_no_part_of_the_identity(tmp_path: Path) -> None:
    unset, chosen = (encode_run(tiny_run(tmp_path, student=student)) for student in ({}, {"attention": "eager"}))
    assert "attention" in str(unset) and "attention" not in str(_without_unset(unset))
    assert _without_unset(chosen) != _without_unset(unset)
    later = {"engine": {"max_staleness": None, "colocated": None, "transfer": "reload"}}
    assert _without_unset(later) == {"engine": {}}
    assert _without_unset({"transfer": "restart"}) == {"transfer": "restart"}
    assert _without_unset({"patience": None}) == {"patience": None}  # an old setting stays, since old identities have it
