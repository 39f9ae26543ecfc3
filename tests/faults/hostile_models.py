"""Models, adapters, GGUF files and cached snapshots whose files ask for code, kernels, pickles or files outside of them."""

from dataclasses import dataclass
from pathlib import Path

from tests.faults.hostile_files import (
    SECRET,
    Plants,
    both,
    code,
    elsewhere,
    fifo,
    foreign_blob,
    linked,
    looped,
    moved_blobs,
    pickled,
    pickled_shard,
    placed,
    sets,
    text,
    without,
)

KERNEL = "someone/kernel"


@dataclass(frozen=True)
class Payload:
    """One hostile model.

    Args:
        name: Its name in the test.
        part: The valid model that it is planted into: "model", "adapter", "gguf" or "snapshot".
        plants: Changes the folder of the model; the second argument is a folder outside of it.
        refused: What the error must contain; None if the model is loaded without the payload.
    """

    name: str
    part: str
    plants: Plants
    refused: str | None = None


C, G, T, S = "config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json"
W, A, AW = "model.safetensors", "adapter_config.json", "adapter_model.safetensors"
MAP = {
    "AutoConfig": "mine.C",
    "AutoModelForCausalLM": "mine.C",
    "AutoTokenizer": ["mine.C", "mine.C"],
    "AutoProcessor": "mine.C",
}
REMOTE = {"AutoConfig": "owner/name--mine.C", "AutoModelForCausalLM": "owner/name--mine.C"}
ESCAPE = "{{ cycler.__init__.__globals__.os.system('touch OUTSIDE/ran') }}"
RESET = "must not be set"
LEADS = "is a link to a file outside of the folder"
FORBIDDEN_NAMES = (
    *("sub_configs", "sub_configs_defaults", "extra_files", "extra_config_files", "from_pretrained", "get_text_config"),
    *("to_dict", "save_pretrained", "is_remote_code", "validate", "__class__", "__init__", "__setattr__"),
)
NOT_TOKENIZERS = (
    *("AutoConfig", "AutoModelForCausalLM", "AutoProcessor", "AutoTokenizer", "AutoTokenizerFast", "RagTokenizer", "pipeline"),
    *("Trainer", "LlamaForCausalLM", "models", "__doc__"),
)
NOT_METHODS = ("hqq", "torchao", "quark", "eetq", "higgs", "metal", "nvfp4", "auto-round", KERNEL)

PAYLOADS = (
    Payload("code in config.json", "model", both(code(), sets(C, auto_map=MAP))),
    Payload("code of an unknown family", "model", both(code(), sets(C, auto_map=MAP, model_type="mine")), "mine"),
    Payload("code of a hub repository", "model", sets(C, auto_map=REMOTE, trust_remote_code=True)),
    Payload(
        "map of attributes",
        "model",
        sets(C, attribute_map={"_attn_implementation": "chosen"}, chosen=KERNEL),
        f"attribute_map: {RESET}",
    ),
    Payload(
        "map of internal attributes",
        "model",
        sets(C, attribute_map={"_attn_implementation_internal": "hidden_act"}),
        f"attribute_map: {RESET}",
    ),
    Payload(
        "map of attributes inside",
        "model",
        sets(C, per_layer_config={"0": {"attribute_map": {"_attn_implementation": "chosen"}}}),
        f"attribute_map: {RESET}",
    ),
    Payload(
        "map of attributes in the rope",
        "model",
        sets(C, rope_parameters={"rope_theta": 1e4, "rope_type": "default", "attribute_map": {}}),
        f"attribute_map: {RESET}",
    ),
    *(Payload(f"config field {name}", "model", sets(C, **{name: {"a": 1}}), f"{name}: {RESET}") for name in FORBIDDEN_NAMES),
    *(
        Payload(f"{name} = {value}", "model", sets(C, **{name: value}))
        for name in ("attn_implementation", "_attn_implementation", "_attn_implementation_internal", "experts_implementation")
        for value in (KERNEL, {"": KERNEL})
    ),
    Payload("experts", "model", sets(C, _experts_implementation=KERNEL, _experts_implementation_internal=KERNEL)),
    Payload("attentions are returned", "model", sets(C, output_attentions=True, _attn_implementation=KERNEL)),
    Payload(
        "other config",
        "model",
        both(code(), sets("config.4.0.0.json", auto_map=MAP), sets(C, configuration_files=["config.4.0.0.json"])),
    ),
    Payload("name of weights", "model", both(pickled("x.bin"), sets(C, transformers_weights="x.bin")), "transformers_weights"),
    Payload("path of weights", "model", sets(C, transformers_weights="../x.safetensors"), "transformers_weights"),
    *(
        Payload(f"quantisation {name}", "model", sets(C, quantization_config={"quant_method": name}), "quant_method")
        for name in NOT_METHODS
    ),
    Payload(
        "dtype of quantisation",
        "model",
        sets(C, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_compute_dtype": "hub"}),
        "bnb_4bit_compute_dtype",
    ),
    *(Payload(f"{name} = load", "model", sets(C, **{name: "load"}), name) for name in ("dtype", "torch_dtype")),
    *(
        Payload(f"family {name}", "model", sets(C, model_type=name), f"model_type = '{name}' is no causal language model")
        for name in ("timm_wrapper", "rag", "detr", "AutoConfig")
    ),
    Payload("name of a hub model", "model", sets(C, _name_or_path="owner/name", name_or_path="owner/name")),
    Payload("class of code", "model", both(code(), sets(C, _auto_class="AutoConfig", auto_map=MAP))),
    Payload("distribution", "model", sets(C, distributed_config={"tp_plan": "auto"}, fusion_config={"a": "mine.C"})),
    Payload("code that generates", "model", code("custom_generate/generate.py")),
    Payload("code that generates, by name", "model", sets(G, custom_generate="owner/name", trust_remote_code=True)),
    Payload("compiled generation", "model", sets(G, compile_config={"backend": "mine"}, cache_config={"backend": "mine"})),
    *(Payload(f"generation field {name}", "model", sets(G, **{name: 1}), f"{name}: {RESET}") for name in ("to_dict", "update")),
    *(
        Payload(
            f"tokenizer class {name}",
            "model",
            both(code(), sets(C, auto_map=MAP), sets(T, tokenizer_class=name, auto_map=MAP)),
            f"tokenizer_class = '{name}'",
        )
        for name in NOT_TOKENIZERS
    ),
    Payload("tokenizer class in config.json", "model", sets(C, tokenizer_class="AutoConfig"), "tokenizer_class = 'AutoConfig'"),
    Payload("code of a tokenizer", "model", both(code(), sets(T, auto_map=["mine.C", "mine.C"], tokenizer_class="Mine"))),
    Payload("code of a tokenizer by map", "model", both(code(), sets(T, auto_map=MAP))),
    Payload(
        "code of a processor",
        "model",
        both(
            code(),
            sets(T, processor_class="C"),
            *(sets(f"{kind}_config.json", auto_map=MAP, processor_class="C") for kind in ("preprocessor", "processor")),
        ),
    ),
    Payload("arguments of a tokenizer", "model", sets(T, init_inputs=["OUTSIDE/secret"])),
    *(
        Payload(f"tokenizer file {name}", "model", sets(T, **{name: "OUTSIDE/secret"}))
        for name in (
            "vocab_file",
            "merges_file",
            "tokenizer_file",
            "vocab",
            "merges",
            "chat_template_file",
            "added_tokens_file",
        )
    ),
    Payload("versions of a tokenizer", "model", sets(T, fast_tokenizer_files=["../secret", "tokenizer.4.0.0.json"])),
    Payload("arguments of SentencePiece", "model", sets(T, sp_model_kwargs={"model_file": "OUTSIDE/secret"})),
    Payload("options of MeCab", "model", sets(T, mecab_option="-r OUTSIDE/secret", phonemizer_backend="mine")),
    Payload("name of a hub tokenizer", "model", sets(T, name_or_path="owner/name", fix_mistral_regex=True, is_local=False)),
    *(
        Payload(f"tokenizer field {name}", "model", sets(T, **{name: "x"}), f"{name}: {RESET}")
        for name in ("apply_chat_template", "from_pretrained", "__class__", "encode")
    ),
    Payload("special tokens as method", "model", sets(S, decode="x"), f"decode: {RESET}"),
    Payload("special tokens as file", "model", sets(S, vocab_file="OUTSIDE/secret", tokenizer_file="OUTSIDE/secret")),
    Payload("named tokens", "model", sets(T, extra_special_tokens={"__class__": "x", "encode": "y", "a_token": "z"})),
    Payload("ids of added tokens", "model", text("added_tokens.json", '{"a": {"__class__": "x"}}'), "must map tokens to ids"),
    Payload("one more template", "model", text("additional_chat_templates/tool.jinja", ESCAPE), "rejected by the sandbox"),
    Payload("name of a template", "model", text("additional_chat_templates/a b.jinja", "w"), "not a plain file name"),
    Payload(
        "template of special tokens", "model", sets(T, chat_template={"default": "w", "x": ESCAPE}), "rejected by the sandbox"
    ),
    Payload(
        "pickles beside", "model", both(*map(pickled, ("pytorch_model.bin", "training_args.bin", "tokenizer.pkl", "vocab.pkl")))
    ),
    Payload(
        "index of pickles beside",
        "model",
        both(
            pickled("pytorch_model.bin"),
            sets("pytorch_model.bin.index.json", metadata={}, weight_map={"lm_head.weight": "pytorch_model.bin"}),
        ),
    ),
    Payload("pickles for safetensors", "model", both(without(W), pickled("pytorch_model.bin")), "pickled weights are not read"),
    Payload("pickle under another name", "model", both(without(W), pickled(W)), "cannot be loaded"),
    Payload("pickled shard", "model", placed(pickled_shard), "must be a .safetensors file beside the index"),
    *(
        Payload(f"shard at {name}", "model", elsewhere(name), "must be a .safetensors file beside the index")
        for name in ("../outside/moved.safetensors", "OUTSIDE/moved.safetensors", "sub/../../outside/moved.safetensors")
    ),
    Payload("linked shard", "model", both(placed(lambda *_: None), linked("model-1.safetensors", "x.safetensors")), LEADS),
    Payload("linked index", "model", both(placed(lambda *_: None), linked("model.safetensors.index.json", "x.json")), LEADS),
    *(
        Payload(f"linked {file}", "model", linked(file, "x" + Path(file).suffix), LEADS)
        for file in (
            W,
            C,
            G,
            T,
            S,
            "tokenizer.json",
            "merges.txt",
            "vocab.json",
            "vocab.txt",
            "tokenizer.model",
            "added_tokens.json",
        )
    ),
    Payload("linked template", "model", linked("chat_template.jinja", "secret"), LEADS),
    Payload("one more linked template", "model", linked("additional_chat_templates/a.jinja", "secret"), LEADS),
    Payload(
        "linked templates",
        "model",
        both(
            lambda _, outside: (outside / "a.jinja").write_text(SECRET),
            lambda folder, outside: (folder / "additional_chat_templates").symlink_to(outside),
        ),
        LEADS,
    ),
    *(Payload(f"loop of {file}", "model", looped(file), "cannot be followed") for file in (W, T, "tokenizer.model")),
    *(Payload(f"pipe as {file}", "model", fifo(file), "is not a regular file") for file in (C, T, "vocab.txt")),
    Payload(
        "code of an adapter",
        "adapter",
        both(code(), sets(A, auto_mapping={"base_model_class": "C", "parent_library": "mine"}, peft_type="MINE")),
        "only plain LoRA",
    ),
    Payload("module of an adapter", "adapter", sets(A, custom_module="mine.C"), "only plain LoRA"),
    Payload("files of an adapter", "adapter", sets(A, corda_config={"cache_file": "OUTSIDE/secret"}), "only plain LoRA"),
    Payload("base of an adapter in layers", "adapter", sets(A, layer_replication=[[0, 4]]), "only plain LoRA"),
    Payload("pickled adapter", "adapter", both(without(AW), pickled("adapter_model.bin")), "pickled adapters are not read"),
    Payload("pickle as adapter", "adapter", both(without(AW), pickled(AW)), "cannot be loaded"),
    *(Payload(f"linked {file}", "adapter", linked(file, "x" + Path(file).suffix), LEADS) for file in (A, AW)),
    Payload(
        "linked tokenizer of an adapter",
        "adapter",
        both(sets(T, eos_token="<|endoftext|>"), linked("tokenizer.json", "x.json")),
        LEADS,
    ),
    Payload(
        "tokenizer class of an adapter",
        "adapter",
        both(code(), sets(C, model_type="llama", auto_map=MAP), sets(T, tokenizer_class="AutoConfig")),
        "tokenizer_class",
    ),
    Payload("adapter beside a GGUF file", "gguf", sets(A, peft_type="LORA", base_model_name_or_path="owner/name", r=2)),
    Payload("config beside a GGUF file", "gguf", both(code(), sets(C, model_type="mine", auto_map=MAP))),
    Payload("tokenizer beside a GGUF file", "gguf", both(code(), sets(T, tokenizer_class="AutoConfig", auto_map=MAP))),
    Payload(
        "generation beside a GGUF file",
        "gguf",
        both(sets(G, eos_token_id="x", to_dict=1), code("custom_generate/generate.py")),
    ),
    Payload("template beside a GGUF file", "gguf", text("chat_template.jinja", ESCAPE)),
    Payload("pickles beside a GGUF file", "gguf", both(pickled("pytorch_model.bin"), pickled("adapter_model.bin"))),
    Payload("code in a snapshot", "snapshot", both(code(), sets(C, auto_map=MAP), sets(T, auto_map=MAP))),
    Payload("kernel in a snapshot", "snapshot", sets(C, attribute_map={"_attn_implementation": "x"}, x=KERNEL), RESET),
    Payload(
        "tokenizer class in a snapshot", "snapshot", both(code(), sets(T, tokenizer_class="AutoConfig")), "tokenizer_class"
    ),
    Payload("pickles in a snapshot", "snapshot", both(pickled("pytorch_model.bin"), pickled("training_args.bin"))),
    Payload("cached file of another model", "snapshot", foreign_blob, LEADS),
    Payload("link out of a snapshot", "snapshot", both(without("tokenizer.json"), linked("tokenizer.json", "secret")), LEADS),
    Payload("cached files elsewhere", "snapshot", moved_blobs, LEADS),
)
