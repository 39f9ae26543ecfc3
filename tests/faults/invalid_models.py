"""Models, adapters and GGUF files, each invalid in one way, built from configs."""

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from redistill.models.initialise import fresh_model
from tests.worlds import LLAMA, gpt2_tokenizer, write_model

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 230112\n"
HEAD, EMBEDDINGS = "model.norm.weight", "model.embed_tokens.weight"
QUERY = "model.layers.1.self_attn.q_proj.weight"
_GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}

Breaks = Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    """One invalid model.

    Args:
        name: Its name in the test.
        part: What is invalid: "values", "weights", "config", "tokenizer", "template", "gguf" or "adapter".
        breaks: Makes a valid folder invalid, or the file of "gguf".
        says: What the error must name.
    """

    name: str
    part: str
    breaks: Breaks
    says: str


# --- valid ones ---------------------------------------------------------------------------------------------------------


def build(folder: Path) -> None:
    """A model, the same in several files, an adapter for it, and a GGUF file, all valid."""
    write_model(folder / "model", LLAMA, 3)
    adapted = fresh_model({**LLAMA, "vocab_size": len(gpt2_tokenizer())}, 3)
    adapted.name_or_path = str(folder / "model")
    settings = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        get_peft_model(adapted, settings).save_pretrained(folder / "adapter")
    write_gguf(folder / "model.gguf")


def write_gguf(path: Path, **changes: int) -> None:
    """A Llama of three layers; `changes` are of its metadata."""
    tokenizer, size = gpt2_tokenizer(), len(gpt2_tokenizer())
    model = fresh_model({**LLAMA, "vocab_size": size}, 3)
    fields = {"block_count": 3, "context_length": 256, "embedding_length": 32, "feed_forward_length": 64, "head_count": 4}
    writer = gguf.GGUFWriter(path, "llama")
    for field, value in {**fields, "head_count_kv": 4, "vocab_size": size, **changes}.items():
        getattr(writer, f"add_{field}")(value)
    writer.add_layer_norm_rms_eps(1e-6)
    tree = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(tree["vocab"], key=tree["vocab"].get))
    writer.add_token_types([3] + [1] * (size - 1))
    writer.add_token_merges([" ".join(pair) for pair in tree["merges"]])
    writer.add_eos_token_id(0)
    for key, tensor in model.state_dict().items():
        named = key.removeprefix("model.").removesuffix(".weight")
        if named.startswith("layers."):
            _, number, inner = named.split(".", 2)
            writer.add_tensor(f"blk.{number}.{_GGUF_NAMES[inner]}.weight", tensor.numpy())
        elif named in ("embed_tokens", "norm"):
            writer.add_tensor("token_embd.weight" if named == "embed_tokens" else "output_norm.weight", tensor.numpy())
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        write()


# --- ways to break them -------------------------------------------------------------------------------------------------


def content(file: str, data: bytes) -> Breaks:
    return lambda folder: void((folder / file).write_bytes(data))


def cut(file: str, fraction: float) -> Breaks:
    def breaks(folder: Path) -> None:
        data = (folder / file).read_bytes()
        (folder / file).write_bytes(data[: int(len(data) * fraction)])

    return breaks


def fields(file: str, **changes: Any) -> Breaks:
    def breaks(folder: Path) -> None:
        tree = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**tree, **changes}))

    return breaks


def without(file: str, *names: str) -> Breaks:
    def breaks(folder: Path) -> None:
        tree = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({key: value for key, value in tree.items() if key not in names}))

    return breaks


def tensors(change: Callable[[dict[str, torch.Tensor]], Any], file: str = "model.safetensors") -> Breaks:
    def breaks(folder: Path) -> None:
        held = load_file(folder / file)
        change(held)
        save_file({key: tensor.contiguous() for key, tensor in held.items()}, folder / file, {"format": "pt"})

    return breaks


def filled(key: str, value: float, *, everywhere: bool = False) -> Breaks:
    def change(held: dict[str, torch.Tensor]) -> None:
        for name in held if everywhere else (key,):
            held[name].fill_(value)

    return tensors(change)


def sharded(change: Callable[[Path, dict[str, Any]], Any]) -> Breaks:
    """The weights in two files and an index, both changed."""

    def breaks(folder: Path) -> None:
        held = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        places = {key: f"model-{1 + (key < QUERY)}.safetensors" for key in held}
        for file in set(places.values()):
            save_file({key: held[key] for key in held if places[key] == file}, folder / file, {"format": "pt"})
        index: dict[str, Any] = {"metadata": {}, "weight_map": places}
        change(folder, index)
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return breaks


def headed(header: Mapping[str, Any] | bytes, *, length: int | None = None) -> Breaks:
    """A safetensors file of this header and 64 bytes."""
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    return content("model.safetensors", struct.pack("<Q", len(data) if length is None else length) + data + b"\0" * 64)


def vocabulary(change: Callable[[dict[str, Any]], Any]) -> Breaks:
    def breaks(folder: Path) -> None:
        tree = json.loads((folder / "tokenizer.json").read_text())
        change(tree)
        (folder / "tokenizer.json").write_text(json.dumps(tree))

    return breaks


def template(text: Any) -> Breaks:
    if isinstance(text, str):
        return content("chat_template.jinja", text.encode())
    return fields("tokenizer_config.json", chat_template=text)


def void(_: object) -> None:
    return None


def overwritten(start: int, data: bytes) -> Breaks:
    def breaks(path: Path) -> None:
        held = path.read_bytes()
        path.write_bytes(held[:start] + data + held[start + len(data) :])

    return breaks


# --- the table ----------------------------------------------------------------------------------------------------------

W, C, T, J = "model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"
AC, AW = "adapter_config.json", "adapter_model.safetensors"
A_KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
NESTED = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}"
DOUBLING = "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}"
ROPE = {"rope_theta": 1e4, "rope_type": "default"}

CASES = (
    Case("NaN", "values", filled(QUERY, float("nan")), QUERY),
    Case("inf", "values", filled(HEAD, float("inf")), HEAD),
    Case("minus inf", "values", filled(EMBEDDINGS, float("-inf")), EMBEDDINGS),
    Case("one NaN", "values", tensors(lambda held: held[QUERY][3].__setitem__(5, float("nan"))), "1 of its 1,024 weights"),
    Case("huge", "values", tensors(lambda held: held[EMBEDDINGS].mul_(1e37)), EMBEDDINGS),
    Case("huge norm", "values", filled(HEAD, 3e38), HEAD),
    Case("denormal", "values", filled(QUERY, 1e-40, everywhere=True), "so small that products are 0"),
    Case("denormal head", "values", filled(EMBEDDINGS, -1e-42), EMBEDDINGS),
    Case("integers", "weights", tensors(lambda held: held.update({QUERY: held[QUERY].to(torch.int64)})), "I64"),
    Case("booleans", "weights", tensors(lambda held: held.update({HEAD: held[HEAD].bool()})), "BOOL"),
    Case("cut", "weights", cut(W, 0.5), W),
    Case("cut header", "weights", cut(W, 0.005), W),
    Case("a byte less", "weights", cut(W, 0.99999), W),
    Case("other shape", "weights", tensors(lambda held: held.update({EMBEDDINGS: held[EMBEDDINGS][:7]})), EMBEDDINGS),
    Case("transposed", "values", tensors(lambda held: held.update({EMBEDDINGS: held[EMBEDDINGS].T.contiguous()})), EMBEDDINGS),
    Case("missing tensor", "values", tensors(lambda held: held.pop(QUERY)), QUERY),
    Case("no tensors", "weights", tensors(lambda held: held.clear()), "contains no tensors"),
    Case("missing shard", "weights", sharded(lambda at, index: (at / "model-1.safetensors").unlink()), "model-1.safetensors"),
    Case("cut shard", "weights", sharded(lambda at, index: cut("model-2.safetensors", 0.9)(at)), "model-2.safetensors"),
    Case("index without map", "weights", sharded(lambda at, index: index.pop("weight_map")), "weight_map"),
    Case("index of numbers", "weights", sharded(lambda at, index: index["weight_map"].update({QUERY: 1})), QUERY),
    Case(
        "index elsewhere",
        "weights",
        sharded(lambda at, index: index["weight_map"].update(x="../y.safetensors")),
        "weight_map of 'x' is '../y.safetensors'",
    ),
    Case(
        "wrong index",
        "weights",
        sharded(lambda at, index: index["weight_map"].update({"x": "model-1.safetensors"})),
        "lists 'x' in model-1",
    ),
    Case(
        "line end in a name",
        "weights",
        sharded(lambda at, index: index["weight_map"].update({"a\nb\x1b[1m": "model-1.safetensors"})),
        "a\\nb",
    ),
    Case("index is a list", "weights", sharded(lambda at, index: (index.clear(), index.update(a=1))), "weight_map"),
    Case("pointer", "weights", content(W, POINTER), "git-lfs pointer"),
    Case("empty", "weights", content(W, b""), W),
    Case("noise", "weights", content(W, bytes(range(256)) * 40), W),
    Case(
        "overlap",
        "weights",
        headed({key: {"dtype": "F32", "shape": [8], "data_offsets": [at, at + 32]} for key, at in (("a", 0), ("b", 16))}),
        W,
    ),
    Case("beyond the end", "weights", headed({"a": {"dtype": "F32", "shape": [8], "data_offsets": [0, 2**50]}}), W),
    Case("huge header", "weights", headed(b"{}", length=2**62), W),
    Case("no JSON header", "weights", headed(b"{" * 64), W),
    Case("text size", "config", fields(C, vocab_size="x"), "vocab_size"),
    Case("negative size", "config", fields(C, vocab_size=-1), "vocab_size"),
    Case("no layers", "config", fields(C, num_hidden_layers=0), "num_hidden_layers"),
    Case("fractional size", "config", fields(C, hidden_size=32.5), "hidden_size"),
    Case("list as size", "config", fields(C, intermediate_size=[64]), "intermediate_size"),
    Case("wide", "config", fields(C, hidden_size=10**6, head_dim=8), "config.json"),
    Case("very wide", "config", fields(C, intermediate_size=10**15), "config.json"),
    Case("wider than numbers", "config", fields(C, hidden_size=2**70), "hidden_size"),
    Case("deep", "config", fields(C, num_hidden_layers=9999), "config.json"),
    Case("deeper", "config", fields(C, num_hidden_layers=10**5), "num_hidden_layers"),
    Case("deepest", "config", fields(C, num_hidden_layers=10**12), "num_hidden_layers"),
    Case("many labels", "config", fields(C, num_labels=2**63), "num_labels"),
    Case("deep inside", "config", fields(C, per_layer_config={"0": {"num_hidden_layers": 10**12}}), "num_hidden_layers"),
    Case("more rows", "config", fields(C, vocab_size=10**7), EMBEDDINGS),
    Case("no family", "config", without(C, "model_type"), "model_type"),
    Case("unknown family", "config", fields(C, model_type="nope"), "nope"),
    Case("number as family", "config", fields(C, model_type=7), "model_type"),
    Case("other family", "config", fields(C, model_type="bert"), "config"),
    Case("zero heads", "config", fields(C, num_attention_heads=0), "num_attention_heads"),
    Case("heads and width", "config", fields(C, num_attention_heads=5, head_dim=None), "heads"),
    Case("heads and groups", "config", fields(C, num_key_value_heads=3), "num_key_value_heads"),
    Case("odd head", "config", fields(C, head_dim=7), "head_dim"),
    Case("zero theta", "config", fields(C, rope_parameters={**ROPE, "rope_theta": 0}), "rope_theta"),
    Case("text theta", "config", fields(C, rope_parameters={**ROPE, "rope_theta": "a"}), "rope_theta"),
    Case("unknown rope", "config", fields(C, rope_parameters={**ROPE, "rope_type": "nope"}), "rope_type"),
    Case("negative factor", "config", fields(C, rope_parameters={**ROPE, "rope_type": "linear", "factor": -2}), "factor"),
    Case("incomplete rope", "config", fields(C, rope_parameters={**ROPE, "rope_type": "longrope"}), "config.json"),
    Case("number as rope", "config", fields(C, rope_parameters=5), "rope_parameters"),
    Case("unknown activation", "config", fields(C, hidden_act="nope"), "hidden_act"),
    Case("unknown dtype", "config", fields(C, dtype="float99"), "float99"),
    Case("NaN epsilon", "config", fields(C, rms_norm_eps=float("nan")), "rms_norm_eps"),
    Case("text epsilon", "config", fields(C, rms_norm_eps="x"), "rms_norm_eps"),
    Case("number as quantisation", "config", fields(C, quantization_config=5), C),
    Case("pad beyond the rows", "config", fields(C, pad_token_id=10**6), C),
    Case("cut config", "config", cut(C, 0.5), C),
    Case("empty config", "config", content(C, b""), C),
    Case("list as config", "config", content(C, b"[1]"), C),
    Case("binary config", "config", content(C, b"\xff\xfe\x00"), C),
    Case("nested config", "config", content(C, b"[" * 100_000), C),
    Case("text as end token", "values", fields("generation_config.json", eos_token_id="x"), "generation_config.json"),
    Case("cut tokenizer", "tokenizer", cut(T, 0.5), "tokenizer"),
    Case("list as tokenizer", "tokenizer", content(T, b"[1]"), "tokenizer"),
    Case("empty tokenizer", "tokenizer", content(T, b""), "tokenizer"),
    Case("pointer as tokenizer", "tokenizer", content(T, POINTER), "git-lfs pointer"),
    Case("text as id", "tokenizer", vocabulary(lambda tree: tree["model"]["vocab"].update({"!": "x"})), "tokenizer"),
    Case("negative id", "tokenizer", vocabulary(lambda tree: tree["model"]["vocab"].update({"!": -1})), "tokenizer"),
    Case("id beyond the rows", "tokenizer", vocabulary(lambda tree: tree["model"]["vocab"].update({"zzz": 10**6})), "'zzz'"),
    Case("two tokens with one id", "tokenizer", vocabulary(lambda tree: tree["model"]["vocab"].update({"zzz": 5})), "'zzz'"),
    Case("unknown kind", "tokenizer", vocabulary(lambda tree: tree["model"].update(type="nope")), "tokenizer"),
    Case("number as merges", "tokenizer", vocabulary(lambda tree: tree["model"].update(merges=5)), "tokenizer"),
    Case("no end token", "tokenizer", without(J, "eos_token", "pad_token"), "no end token"),
    Case("pad without end", "tokenizer", without(J, "eos_token"), "no end token"),
    Case("pad token without a row", "tokenizer", fields(J, pad_token="<pad>"), "'<pad>'"),
    Case("new end token", "tokenizer", fields(J, eos_token="<not in it>"), "'<not in it>'"),
    Case("number as end token", "tokenizer", fields(J, eos_token=5), "tokenizer"),
    Case("list as tokenizer config", "tokenizer", content(J, b"[1]"), "tokenizer"),
    Case("cut tokenizer config", "tokenizer", cut(J, 0.5), "tokenizer"),
    Case("unknown class", "tokenizer", fields(J, tokenizer_class=7), "tokenizer"),
    Case("syntax error", "template", template("{% for m in messages %}{{ m.content }"), "chat template"),
    Case("unknown tag", "template", template("{% nope %}"), "chat template"),
    Case("endless", "template", template(NESTED), "takes more than"),
    Case("10^11 characters", "template", template("{{ 'x' * 10 ** 11 }}"), "chat template"),
    Case("10^7 characters", "template", template("{{ 'x' * 10 ** 7 }}"), "characters"),
    Case("doubling", "template", template(DOUBLING), "chat template"),
    Case(
        "endless prompt",
        "template",
        template("{% if add_generation_prompt %}" + NESTED + "{% endif %}"),
        "takes more than",
    ),
    Case("number as template", "template", template(5), "chat"),
    Case("numbers as templates", "template", template([{"name": "default", "template": 5}]), "chat"),
    Case("list as template", "template", template([1, 2]), "tokenizer"),
    Case("unsafe", "template", template("{{ ''.__class__.__mro__ }}"), "sandbox"),
    Case("gguf cut header", "gguf", cut("", 0.0002), "model.gguf"),
    Case("gguf cut fields", "gguf", cut("", 0.05), "model.gguf"),
    Case("gguf cut tensors", "gguf", cut("", 0.8), "model.gguf"),
    Case("gguf empty", "gguf", content("", b""), "model.gguf"),
    Case("gguf pointer", "gguf", content("", POINTER), "git-lfs pointer"),
    Case("gguf magic", "gguf", overwritten(0, b"GGML"), "GGML"),
    Case("gguf version", "gguf", overwritten(4, struct.pack("<I", 99)), "version 99"),
    Case("gguf counts", "gguf", overwritten(8, struct.pack("<QQ", 2**60, 2**60)), "tensors"),
    Case("gguf mismatch", "gguf", lambda path: write_gguf(path, embedding_length=64), "model.gguf"),
    Case("gguf width", "gguf", lambda path: write_gguf(path, embedding_length=2**30), "model.gguf"),
    Case("gguf layers", "gguf", lambda path: write_gguf(path, block_count=2**31), "num_hidden_layers"),
    Case("gguf more layers", "gguf", lambda path: write_gguf(path, block_count=9), "model.gguf"),
    Case("adapter cut", "adapter", cut(AW, 0.5), AW),
    Case("adapter empty", "adapter", content(AW, b""), AW),
    Case("adapter pointer", "adapter", content(AW, POINTER), "git-lfs pointer"),
    Case("adapter NaN", "adapter values", tensors(lambda held: held[A_KEY].fill_(float("nan")), AW), A_KEY),
    Case("adapter huge alpha", "adapter values", fields(AC, lora_alpha=1e300), "adapter"),
    Case("adapter rank", "adapter", fields(AC, r=10**9), "r = 1000000000"),
    Case("adapter low rank", "adapter values", fields(AC, r=2), "lora_A"),
    Case("adapter text rank", "adapter", fields(AC, r="x"), "r = 'x'"),
    Case("adapter list alpha", "adapter", fields(AC, lora_alpha=[1]), "lora_alpha"),
    Case("adapter NaN alpha", "adapter", fields(AC, lora_alpha=float("nan")), "lora_alpha"),
    Case("adapter number target", "adapter", fields(AC, target_modules=5), "target_modules"),
    Case("adapter unknown target", "adapter values", fields(AC, target_modules=["nope"]), "nope"),
    Case("adapter bad pattern", "adapter values", fields(AC, target_modules="(["), "adapter"),
    Case("adapter number base", "adapter", fields(AC, base_model_name_or_path=7), "base_model_name_or_path"),
    Case("adapter missing base", "adapter", fields(AC, base_model_name_or_path="/no/such"), "/no/such"),
    Case("adapter number revision", "adapter", fields(AC, revision=7), "revision"),
    Case("adapter cut config", "adapter", cut(AC, 0.5), AC),
    Case("adapter list config", "adapter", content(AC, b"[1]"), AC),
    Case(
        "adapter of another width",
        "adapter values",
        tensors(lambda held: held.update({A_KEY: torch.ones(4, 48)}), AW),
        "4 x 48",
    ),
    Case("adapter too few", "adapter values", tensors(lambda held: held.pop(A_KEY), AW), "lora_A"),
    Case(
        "adapter resized",
        "adapter values",
        tensors(lambda held: held.update({"base_model.model.model.embed_tokens.weight": torch.ones(999, 32)}), AW),
        "resized embeddings",
    ),
)
