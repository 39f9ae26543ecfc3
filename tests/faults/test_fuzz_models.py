"""Whatever the files of a model hold: the model is read, or refused in one typed line."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config, LlamaConfig

from redistill.models.adapters import find_adapter
from redistill.models.load import ModelConfig, load_model, load_tokenizer, read_config
from redistill.models.weight_files import INDEX, SINGLE, header, shards
from tests.faults.crafted import crafted, tensors_file
from tests.faults.invalid_models import build
from tests.faults.noise import TEXTS, changed, fuzzed, json_text, places, read_or_refused, written_json
from tests.worlds import GPT2, LLAMA, write_model

QUERY = "model.layers.0.self_attn.q_proj.weight"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
TOKEN = {
    "__type": "AddedToken",
    "content": "<pad>",
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "single_word": False,
    "special": True,
}
FIELDS = {
    "tokenizer_config.json": {
        **{"model_max_length": 256, "padding_side": "right", "truncation_side": "left", "model_input_names": ["input_ids"]},
        **{"bos_token": "<|endoftext|>", "unk_token": TOKEN, "add_bos_token": False, "add_eos_token": False, "legacy": False},
        **{"clean_up_tokenization_spaces": False, "split_special_tokens": False, "spaces_between_special_tokens": True},
        **{"extra_special_tokens": ["<a>"], "additional_special_tokens": [TOKEN], "added_tokens_decoder": {"3": TOKEN}},
        **{"chat_template": "{{ messages[0].content }}", "errors": "replace", "add_prefix_space": False},
    },
    "special_tokens_map.json": {"eos_token": TOKEN, "pad_token": "<|endoftext|>", "additional_special_tokens": ["<a>"]},
    "added_tokens.json": {"<a>": 461, "<b>": 462},
    "adapter_config.json": {
        **{
            "lora_dropout": 0.1,
            "bias": "none",
            "use_rslora": False,
            "use_dora": False,
            "fan_in_fan_out": False,
            "revision": None,
        },
        **{
            "rank_pattern": {"q_proj": 2},
            "alpha_pattern": {"v_proj": 4},
            "layers_to_transform": [0, 1],
            "layers_pattern": "layers",
        },
        **{"modules_to_save": None, "exclude_modules": ["lm_head"], "task_type": "CAUSAL_LM", "inference_mode": True},
    },
    "generation_config.json": {
        **{"bos_token_id": 0, "eos_token_id": [0, 1], "pad_token_id": 0, "temperature": 0.5, "top_p": 0.9, "top_k": 20},
        **{"do_sample": True, "max_length": 20, "max_new_tokens": 5, "repetition_penalty": 1.1, "no_repeat_ngram_size": 3},
    },
}
"""Fields beyond those that the files of the small models have."""


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama, a GPT-2 and an adapter with all fields that their files may have; each file is valid."""
    folder = tmp_path_factory.mktemp("valid")
    build(folder)
    for name, config in (("model", LLAMA), ("gpt2", GPT2)):
        write_model(folder / name, config, 3, vocab_size=470)  # there is room for the added tokens
    for name, defaults in (("model", LlamaConfig()), ("gpt2", GPT2Config())):
        add_fields(folder / name / "config.json", defaults.to_dict())
    for name in ("model", "gpt2"):
        for file in (*TOKENIZER_FILES[1:], "generation_config.json"):
            add_fields(folder / name / file, FIELDS[file])
    add_fields(folder / "adapter" / "adapter_config.json", FIELDS["adapter_config.json"])
    return folder


def add_fields(path: Path, fields: dict[str, Any]) -> None:
    held = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**fields, **held}))


@contextmanager
def replaced(path: Path, data: bytes) -> Iterator[None]:
    """`path` has these bytes inside of the context, and is afterwards what it was."""
    before = path.read_bytes()
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(before)


def encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


@st.composite
def one_field(draw: st.DrawFn, path: Path) -> bytes:
    """A JSON file of which one field has a value or a text in its place, which says more about a reader than many fields do."""
    tree = json.loads(path.read_text())
    return encoded(
        draw(
            st.one_of(
                written_json(tree),
                json_text(tree),
                st.sampled_from(sorted(tree))
                .flatmap(lambda name: changed({name: tree[name]}))
                .map(lambda part: json.dumps({**tree, **part})),
            )
        )
    )


# --- config.json --------------------------------------------------------------------------------------------------------


@given(st.data(), st.sampled_from(["model", "gpt2"]))
@fuzzed("fields of a config")
def test_any_config(valid: Path, data: st.DataObject, name: str) -> None:
    path = valid / name / "config.json"
    with replaced(path, data.draw(one_field(path))):
        read_or_refused(lambda: read_config(ModelConfig(model=str(valid / name))))


@given(st.data(), st.sampled_from(["model", "gpt2"]), st.sampled_from(["config.json", "generation_config.json"]))
@fuzzed("fields of a loaded model")
def test_any_model(valid: Path, data: st.DataObject, name: str, file: str) -> None:
    path = valid / name / file
    with replaced(path, data.draw(one_field(path))):
        read_or_refused(lambda: load_model(ModelConfig(model=str(valid / name))))


# --- tokenizers ---------------------------------------------------------------------------------------------------------


@given(st.data(), st.sampled_from([*TOKENIZER_FILES, "chat_template.jinja"]))
@fuzzed("files of a tokenizer")
def test_any_tokenizer(valid: Path, data: st.DataObject, name: str) -> None:
    path = valid / "model" / name
    if name == "chat_template.jinja":
        text = data.draw(st.one_of(TEXTS, st.lists(st.sampled_from(JINJA), max_size=12).map("".join)))
        path.write_text("")
    elif name == "tokenizer.json":
        text = data.draw(tokenizer_json(path))
    else:
        text = data.draw(one_field(path)).decode("utf-8", "surrogatepass")
    try:
        with replaced(path, encoded(text)):
            tokenizer = read_or_refused(lambda: load_tokenizer(ModelConfig(model=str(valid / "model"))))
        if tokenizer is not None:
            assert tokenizer.decode(tokenizer("a b")["input_ids"]) is not None
    finally:
        (valid / "model" / "chat_template.jinja").unlink(missing_ok=True)


JINJA = [
    *(
        "{{ ",
        " }}",
        "{% ",
        " %}",
        "{# ",
        "messages",
        "[0]",
        ".content",
        ".role",
        " for m in ",
        "endfor",
        "if ",
        "endif",
        "1e999",
        " ** ",
    ),
    *(
        "'a'",
        " * 9999",
        "range(10**9)",
        "|join",
        "|tojson",
        "raise_exception('x')",
        "namespace()",
        "self",
        ".__class__",
        "{{ 1/0 }}",
    ),
]


def tokenizer_json(path: Path) -> st.SearchStrategy[str]:
    """tokenizer.json, with a change anywhere but in most of its vocabulary, which would hide the other fields."""
    tree = json.loads(path.read_text())
    vocabulary, merges = tree["model"]["vocab"], tree["model"]["merges"]
    few = dict(list(vocabulary.items())[:2])
    small = {**tree, "model": {**tree["model"], "vocab": few, "merges": merges[:1]}}

    def whole(part: Any) -> str:
        """The changed tree with the tokens and merges that were left out."""
        if isinstance(part, dict) and isinstance(part.get("model"), dict):
            model = part["model"]
            if model.get("vocab") == few:
                model["vocab"] = vocabulary
            if model.get("merges") == merges[:1]:
                model["merges"] = merges
        return json.dumps(part)

    return st.one_of(changed(small).map(whole), changed(small).map(whole), json_text(small), written_json(small))


# --- adapters -----------------------------------------------------------------------------------------------------------


@given(st.data())
@fuzzed("fields of an adapter")
def test_any_adapter(valid: Path, data: st.DataObject) -> None:
    path = valid / "adapter" / "adapter_config.json"
    with replaced(path, data.draw(one_field(path))):
        read_or_refused(lambda: find_adapter(str(valid / "adapter"), None))


@given(st.data())
@fuzzed("a merged adapter")
def test_any_merged_adapter(valid: Path, data: st.DataObject) -> None:
    path = valid / "adapter" / data.draw(st.sampled_from(["adapter_config.json", "adapter_model.safetensors"]))
    content = data.draw(one_field(path) if path.suffix == ".json" else header_changed(path))
    with replaced(path, content):
        read_or_refused(lambda: load_model(ModelConfig(model=str(valid / "adapter"))))


# --- weights ------------------------------------------------------------------------------------------------------------


@st.composite
def header_changed(draw: st.DrawFn, path: Path) -> bytes:
    """A safetensors file whose header was changed."""
    held = path.read_bytes()
    length = int.from_bytes(held[:8], "little")
    return tensors_file(draw(changed(json.loads(held[8 : 8 + length]))), held[8 + length :])


@given(crafted())
@fuzzed("headers of weights")
def test_any_header_of_weights(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / SINGLE
    path.write_bytes(data)
    read_or_refused(lambda: header("mine", path))


@given(written_json({"metadata": {"total_size": 8}, "weight_map": {QUERY: "a.safetensors", "b": "b.safetensors"}}))
@fuzzed("an index of weights")
def test_any_index_of_weights(tmp_path: Path, text: str) -> None:
    path = tmp_path / INDEX
    path.write_bytes(encoded(text))
    found = read_or_refused(lambda: shards("mine", path))
    assert found is None or all(Path(file).name == file for file in found.values())


@given(st.data())
@fuzzed("weights of a model")
def test_any_weights(valid: Path, data: st.DataObject) -> None:
    path = valid / "model" / SINGLE
    with replaced(path, data.draw(header_changed(path))):
        read_or_refused(lambda: load_model(ModelConfig(model=str(valid / "model"))))


@given(st.data())
@fuzzed("a GGUF file")
def test_any_gguf_file(valid: Path, data: st.DataObject) -> None:
    path = valid / "model.gguf"
    held = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.one_of(st.integers(0, 400), st.integers(0, len(held) - 9)))
        values = st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff" * 8, bytes(8), b"\xff\xff\xff\x7f"]))
        value = data.draw(values)
        held[place : place + len(value)] = value
    with replaced(path, bytes(held)):
        read_or_refused(lambda: load_tokenizer(ModelConfig(model=str(path))))
        read_or_refused(lambda: read_config(ModelConfig(model=str(path))))


def test_the_valid_models_are_loaded(valid: Path) -> None:
    """Nothing above is refused because of a field that was added."""
    for name in ("model", "gpt2", "adapter"):
        load_model(ModelConfig(model=str(valid / name)))
    assert len(places(json.loads((valid / "model" / "config.json").read_text()))) >= 30
