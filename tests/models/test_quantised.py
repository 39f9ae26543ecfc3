"""QLoRA: adapters train over a base in 4 or 8 bits, and the merged model is an ordinary one."""

import importlib.util

import pytest
import torch
from transformers import AutoModelForCausalLM

from redistill.errors import ConfigError
from redistill.models import quantised
from redistill.models.families import body
from redistill.models.initialise import cast_weights, student_from_layers
from redistill.models.load import ModelConfig, load_model, parameter_bytes, parameter_count
from redistill.models.lora import LoraConfig, add_lora, save_student, trainable_state
from redistill.models.quantised import is_quantised
from redistill.runs.models import load_models
from redistill.runs.run import train_student
from redistill.storage import files
from tests.models.conftest import make_tokenizer
from tests.worlds import tiny_run

IDS_BT = torch.tensor([[3, 4, 5, 6, 7, 8, 9, 10, 11]])
MASK_BT = torch.ones_like(IDS_BT)
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes (extra qlora)"
)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=IDS_BT, attention_mask=MASK_BT).logits


@pytest.fixture
def folder(tiny, tmp_path):
    sizes = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 32, "num_hidden_layers": 2}
    tiny("llama", **sizes).save_pretrained(tmp_path / "model")
    make_tokenizer(eos_token="w2").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def student(folder, quantise):
    """A quantised student with non-zero adapters."""
    model, tokenizer = load_model(ModelConfig(model=str(folder)), quantise)
    model = add_lora(model, LoraConfig(rank=2, alpha=8.0, dropout=0.0), seed=1)
    generator = torch.Generator().manual_seed(5)
    for parameter in trainable_state(model).values():
        parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model, tokenizer


@pytest.mark.parametrize("quantise", ["nf4", "int8"])
def test_without_bitsandbytes_the_extra_is_named(folder, monkeypatch, quantise):
    monkeypatch.setattr(quantised.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the bitsandbytes package; pip install 'redistill\[qlora\]'"):
        quantised.loading_options(quantise, torch.float32)
    assert quantised.loading_options("none", torch.float32) == {}


@needs_bitsandbytes
@pytest.mark.parametrize("quantise", ["nf4", "int8"])
def test_adapters_train_over_a_quantised_base_before_and_after_generation(folder, quantise):
    model, _ = student(folder, quantise)
    for _ in range(2):
        model.train()
        body(model)(IDS_BT, MASK_BT).square().sum().backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert gradients.keys() == trainable_state(model).keys()
        assert all(gradient.dtype == torch.float32 and gradient.abs().sum() > 0 for gradient in gradients.values())
        model.zero_grad()
        logits(model)  # on some CPUs this is where bitsandbytes repacks


@needs_bitsandbytes
@pytest.mark.parametrize("quantise", ["nf4", "int8"])
def test_casting_leaves_quantised_weights_alone(folder, quantise):
    model, _ = student(folder, quantise)
    before = logits(model)
    cast_weights(model, torch.float32)
    assert torch.equal(logits(model), before)


@needs_bitsandbytes
@pytest.mark.parametrize(("quantise", "tolerance"), [("nf4", 1e-4), ("int8", 0.05)])
def test_the_merged_model_is_an_ordinary_one_with_the_same_logits(folder, tmp_path, quantise, tolerance):
    """int8 products round their inputs too, which the ordinary model does not."""
    model, tokenizer = student(folder, quantise)
    before = logits(model)
    save_student(model, tokenizer, tmp_path)
    assert torch.equal(logits(model), before)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert not hasattr(merged.config, "quantization_config")
    assert all(parameter.is_floating_point() for parameter in merged.parameters())
    size = float(before.abs().max())
    assert float((logits(merged) - before).abs().max()) < tolerance * size
    assert float((logits(merged) - logits(load_model(ModelConfig(model=str(folder)))[0])).abs().max()) > 0.05 * size


@needs_bitsandbytes
@pytest.mark.parametrize("quantise", ["nf4", "int8"])
def test_the_size_counts_weights_and_not_bytes(folder, quantise):
    config = ModelConfig(model=str(folder))
    assert parameter_count(load_model(config, quantise)[0]) == parameter_count(load_model(config)[0])


@needs_bitsandbytes
def test_layers_of_a_quantised_model_cannot_be_copied(folder):
    with pytest.raises(ConfigError, match="layers of a quantised model cannot be copied"):
        student_from_layers(load_model(ModelConfig(model=str(folder)), "nf4")[0], 1)


@needs_bitsandbytes
@pytest.mark.parametrize("quantise", ["nf4", "int8"])
def test_a_quantised_teacher_is_smaller_and_its_student_of_layers_is_not_quantised(tmp_path, quantise):
    student = {"model": "teacher", "initialise": {"layers": 2}}
    models, plain = (load_models(tiny_run(tmp_path, teacher=each, student=student)) for each in ({"quantise": quantise}, {}))
    assert is_quantised(models.teacher) and not is_quantised(models.student)
    assert parameter_bytes(models.teacher) < parameter_bytes(plain.teacher)
    for name, weight in plain.student.state_dict().items():
        assert torch.equal(models.student.state_dict()[name], weight)


@needs_bitsandbytes
def test_a_run_learns_from_a_quantised_teacher(tmp_path):
    losses = []
    for teacher in ({"quantise": "nf4"}, {}):
        run = tiny_run(tmp_path, "kd", out=f"run-{len(losses)}", teacher=teacher, training={"updates": 1})
        train_student(run)
        losses.append(files.read_lines(run.folder / "metrics.jsonl")[1]["divergence"])
    assert losses[0] == pytest.approx(losses[1], rel=0.5) and losses[0] != losses[1]


@pytest.mark.parametrize("change", [{"adapter": "a"}, {"model": "teacher.gguf"}])
def test_a_teacher_that_cannot_be_quantised_is_rejected_when_the_recipe_is_read(tmp_path, change):
    with pytest.raises(ConfigError, match=r"teacher\.quantise = 'nf4': cannot be combined with an adapter or a GGUF file"):
        tiny_run(tmp_path, teacher={"quantise": "nf4", **change})
