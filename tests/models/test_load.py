"""Loading: valid models load, errors are one line, and no path is looked up on the hub."""

import fnmatch
import json
import re
import shutil

import pytest
import torch
from transformers import AutoConfig, PretrainedConfig

from redistill.errors import ConfigError, ModelError
from redistill.models import load, snapshots, tokenizers
from redistill.models.load import ModelConfig, end_token_ids, load_model, load_tokenizer
from redistill.models.tokenizers import compatibility_warnings
from tests.models.conftest import make_tokenizer


@pytest.fixture
def folder(tiny, tmp_path):
    tiny("llama").save_pretrained(tmp_path / "model")
    make_tokenizer(eos_token="w2").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def no_hub(monkeypatch):
    """Any call of a loader fails the test: a model must be rejected before."""

    def fail(*args, **kwargs):
        raise AssertionError("the loader was called")

    for loader in (AutoConfig, load.AutoTokenizer, load.AutoModelForCausalLM):
        monkeypatch.setattr(loader, "from_pretrained", fail)
    monkeypatch.setattr(PretrainedConfig, "get_config_dict", fail)


def test_a_saved_folder_loads_as_it_was(tiny, folder):
    model, tokenizer = load_model(ModelConfig(model=str(folder)))
    for (name, loaded), (_, saved) in zip(model.state_dict().items(), tiny("llama").state_dict().items(), strict=True):
        assert torch.equal(loaded, saved), name
    assert not model.training and model.dtype == torch.float32
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2


@pytest.mark.parametrize(("asked", "got"), [("bfloat16", torch.bfloat16), ("auto", torch.float32)])
def test_the_dtype_is_that_of_the_config(folder, asked, got):
    assert load_model(ModelConfig(model=str(folder), dtype=asked))[0].dtype == got


def test_gradient_checkpointing_is_switched_on(folder):
    model = load_model(ModelConfig(model=str(folder), gradient_checkpointing=True))[0]
    assert getattr(model, "is_activation_checkpointing", None) or model.is_gradient_checkpointing  # transformers renamed it


def test_an_existing_pad_token_is_kept(folder):
    make_tokenizer(eos_token="w2", pad_token="w7").save_pretrained(folder)
    assert load_tokenizer(ModelConfig(model=str(folder))).pad_token_id == 7


def test_a_tokenizer_without_pad_and_end_is_rejected(folder):
    make_tokenizer().save_pretrained(folder)
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    with pytest.raises(ModelError, match="has no end token; set eos_token"):
        load_tokenizer(ModelConfig(model=str(folder)))


@pytest.mark.parametrize("name", ["./none", "/no/such/folder", "~/none-such", "a/b/c", "none/", "..", "x\\y", "none.gguf"])
def test_a_missing_path_is_never_looked_up_on_the_hub(name, no_hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as caught:
        load_model(ModelConfig(model=name))
    assert str(caught.value).startswith(f"{name}: ") and "\n" not in str(caught.value)


def test_a_missing_folder_in_an_existing_one_is_never_looked_up_on_the_hub(no_hub, tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(snapshots, "snapshot_download", lambda *args, **kwargs: pytest.fail("the hub was asked"))
    with pytest.raises(ModelError, match=r"^models/x: no such folder in the folder models; give a model folder"):
        load_model(ModelConfig(model="models/x"))


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors"])
def test_an_incomplete_folder_is_rejected_in_one_line(folder, lost, no_hub):
    (folder / lost).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    with pytest.raises(ModelError, match="contains no"):
        load_model(ModelConfig(model=str(folder)))


def test_a_damaged_file_is_rejected_in_one_line(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        load_model(ModelConfig(model=str(folder)))
    assert "\n" not in str(caught.value)


def test_missing_weights_are_rejected(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 5}))
    with pytest.raises(ModelError, match=r"weights are missing .* first model\.layers\.4\."):
        load_model(ModelConfig(model=str(folder)))


def test_a_config_selects_no_kernel_and_runs_no_code(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "attn_implementation": "someone/kernel"}))
    model, _ = load_model(ModelConfig(model=str(folder)))
    assert model.config._attn_implementation == "sdpa"
    code = {"model_type": "mine", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
    (folder / "config.json").write_text(json.dumps(code))
    (folder / "code.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(ModelConfig(model=str(folder)))


def test_the_error_of_a_library_about_a_hub_model_becomes_one_line(monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("\nWe could not connect\nto the hub\n")

    monkeypatch.setattr(snapshots, "snapshot_download", unreachable)
    with pytest.raises(
        ModelError, match=r"^owner/name: cannot be found \(We could not connect\); check the name, the revision"
    ):
        load_model(ModelConfig(model="owner/name"))


@pytest.mark.parametrize("name", ["not a name", "a--b/c", "owner/none"])
def test_an_unknown_hub_name_is_reported_in_one_line(name):
    with pytest.raises(ModelError) as caught:
        load_model(ModelConfig(model=name))
    assert re.match(f"{re.escape(name)}: (config.json )?cannot be ", str(caught.value)) and "\n" not in str(caught.value)


@pytest.mark.parametrize("there", [(), ("sentencepiece",)])
def test_a_sentencepiece_tokenizer_without_its_packages_names_the_extra(folder, monkeypatch, no_hub, there):
    def find_spec(name):
        if name.startswith("google."):
            raise ModuleNotFoundError(name)  # as Python does if the parent package is missing
        return object() if name in there else None

    monkeypatch.setattr(tokenizers.importlib.util, "find_spec", find_spec)
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    with pytest.raises(ModelError, match=r"pip install 'redistill\[sentencepiece\]'"):
        load_tokenizer(ModelConfig(model=str(folder)))


def test_quantising_a_gguf_file_or_merged_model_is_rejected(tmp_path, no_hub):
    (tmp_path / "m.gguf").touch()
    with pytest.raises(ConfigError, match=r"must be none, since .* is a GGUF file or has an adapter to be merged"):
        load_model(ModelConfig(model=str(tmp_path / "m.gguf")), "nf4")


@pytest.mark.parametrize("fields", [{"model": " "}, {"model": "m", "dtype": "float16"}])
def test_settings_out_of_range_are_rejected(fields):
    with pytest.raises(ConfigError):
        ModelConfig(**fields)


@pytest.mark.parametrize(("listed", "expected"), [(None, (2,)), (5, (2, 5)), ([5, 2, 6], (2, 5, 6))])
def test_end_ids_are_the_tokenizers_and_the_generation_configs(tiny, listed, expected):
    model = tiny("gpt2")
    model.generation_config.eos_token_id = listed
    assert end_token_ids(model, make_tokenizer(eos_token="w2")) == expected


@pytest.mark.parametrize("ends_with_token", [True, False])
def test_the_chat_templates_end_of_turn_ends_a_response_if_it_is_a_token_of_its_own(tiny, ends_with_token):
    tokenizer = make_tokenizer(eos_token="<eos>", pad_token="<pad>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    end = "<|im_end|>" if ends_with_token else ""
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}" + end + "\n{% endfor %}"
    ids = end_token_ids(tiny("llama"), tokenizer)
    assert (tokenizer.convert_tokens_to_ids("<|im_end|>") in ids) == ends_with_token
    assert ids[0] == tokenizer.eos_token_id


def test_warnings_name_what_differs_between_two_tokenizers():
    plain, other = make_tokenizer(eos_token="w2"), make_tokenizer(eos_token="w3")
    assert compatibility_warnings(plain, plain) == []
    other.chat_template = "{{ messages }}"
    end, template = compatibility_warnings(plain, other)
    assert "'w2'" in end and "'w3'" in end and "chat templates" in template


def test_size_counts_tied_weights_once(tiny):
    tied, untied = tiny("llama", tie_word_embeddings=True), tiny("llama", tie_word_embeddings=False)
    assert load.parameter_count(untied) - load.parameter_count(tied) == 40 * 16
    assert load.parameter_bytes(tied.to(torch.bfloat16)) == 2 * load.parameter_count(tied)


def test_a_name_with_control_characters_is_rejected():
    for name in ("a\nb", "a\x00b", "\x1b[1mx"):
        with pytest.raises(ConfigError, match="must not contain control characters"):
            ModelConfig(model=name)


def test_a_downloaded_model_is_checked_by_its_headers_too(folder, monkeypatch):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 10**9}))
    asked = []

    def download(name, *, revision, allow_patterns):
        asked.append((revision, allow_patterns))
        (folder.parent / "abc").mkdir(exist_ok=True)
        for file in folder.iterdir():
            if any(fnmatch.fnmatch(file.name, pattern) for pattern in allow_patterns):
                shutil.copy(file, folder.parent / "abc")
        return folder.parent / "abc"

    monkeypatch.setattr(snapshots, "snapshot_download", download)
    assert load.read_config(ModelConfig(model="owner/name")).intermediate_size == 10**9
    assert not [pattern for _, patterns in asked for pattern in patterns if pattern.startswith("model")]  # no weights
    with pytest.raises(ModelError, match=r"owner/name: model\.layers\.0\.mlp\.\w+\.weight is 16 x 24 in model\.safetensors"):
        load_model(ModelConfig(model="owner/name", revision="v1"))
    assert asked[-1] == ("abc", ["model.safetensors", "model.safetensors.index.json"])
    assert {revision for revision, _ in asked} == {"main", "v1", "abc"}
