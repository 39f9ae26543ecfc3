"""Hostile models through every loader: nothing they name is run, asked for, downloaded, or read outside of their folder."""

import builtins
import io
import shutil
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from huggingface_hub import constants
from transformers.integrations import hub_kernels

from redistill.cli.main import main
from redistill.config.run import encode_run
from redistill.errors import ModelError
from redistill.models import load as load_module
from redistill.models.load import ModelConfig, load_model, load_tokenizer, read_config
from redistill.models.lora import LoraConfig, add_lora, save_student
from tests.faults import invalid_models
from tests.faults.counts import WHOLE
from tests.faults.hostile_files import SECRET, cached_snapshot, code, moved_weights, sets
from tests.faults.hostile_models import PAYLOADS, Payload
from tests.faults.test_invalid_models import arguments
from tests.worlds import rows, tiny_run, write_rows

NAMES = [f"{payload.part}: {payload.name}" for payload in PAYLOADS]
COMMANDS = ("evaluate", "train", "run", "estimate", "data check", "doctor")
TRIED = [(payload, command) for payload in PAYLOADS for command in COMMANDS]


class Connected(BaseException):
    """Ends a test that opens a connection; no library retries after it."""


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A valid model, adapter and GGUF file, and recipes with their data."""
    folder = tmp_path_factory.mktemp("valid")
    invalid_models.build(folder)
    for method in ("sft", "kd"):
        (folder / f"{method}.yaml").write_text(yaml.safe_dump(encode_run(tiny_run(folder, method))), encoding="utf-8")
    write_rows(folder / "rows.jsonl", rows(4))
    return folder


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with a folder `outside`; the caches of the hub are in it, and the hub is not offline."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text(SECRET)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tmp_path


@pytest.fixture
def asked(world: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Counts what a payload may ask for: connections, answers of the user, and kernels."""
    counts: Counter[str] = Counter()

    def counted(what: str, then: Callable[[], Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            counts[what] += 1
            return then()

        return call

    def refuse() -> Any:
        raise Connected

    class Answers(io.StringIO):
        read = readline = counted("stdin", lambda: "y\n")

    for owner, name in ((socket.socket, "connect"), (socket, "getaddrinfo"), (socket, "create_connection")):
        monkeypatch.setattr(owner, name, counted("network", refuse))
    monkeypatch.setattr(builtins, "input", counted("stdin", lambda: "y"))
    monkeypatch.setattr(sys, "stdin", Answers())
    for name in ("load_and_register_attn_kernel", "get_kernel", "lazy_load_kernel"):
        monkeypatch.setattr(hub_kernels, name, counted("kernel", refuse), raising=False)
    yield counts


def plant(payload: Payload, valid: Path, world: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make the hostile model; returns its name for a ModelConfig."""
    source = {"gguf": "model", "snapshot": "model"}.get(payload.part, payload.part)
    folder = world / "hostile"
    if payload.part == "gguf":
        folder.mkdir()
        shutil.copy(valid / "model.gguf", folder)
    elif payload.part == "snapshot":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        folder = cached_snapshot(valid / "model", world / "cache", "owner/hostile")
    else:
        shutil.copytree(valid / source, folder)
    payload.plants(folder, world / "outside")
    return {"gguf": str(folder / "model.gguf"), "snapshot": "owner/hostile"}.get(payload.part, str(folder))


def check_unmarked(world: Path, asked: Counter[str]) -> None:
    assert not (world / "outside" / "ran").exists()
    assert not asked


@pytest.mark.parametrize("payload", PAYLOADS, ids=NAMES)
def test_no_loader_obeys_a_payload(
    payload: Payload, valid: Path, world: Path, asked: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ModelConfig(model=plant(payload, valid, world, monkeypatch))
    for load in (load_tokenizer, read_config, load_model):
        try:
            loaded = load(config)
        except ModelError as error:
            assert "\n" not in str(error) and "redistill-" not in str(error)
            assert payload.refused is not None and (load is not load_model or payload.refused in str(error)), error
        else:
            assert load is not load_model or payload.refused is None
    check_unmarked(world, asked)
    if payload.refused is None:
        check_export(loaded, world / "exported")
        check_unmarked(world, asked)


def check_export(loaded: Any, folder: Path) -> None:
    """A student that is made of the model has none of the payload."""
    model, tokenizer = loaded
    used = {getattr(getattr(module, "config", None), "_attn_implementation", None) for module in model.modules()}
    assert used <= {None, "eager", "sdpa"} and type(model).__module__.startswith("transformers.")
    folder.mkdir()
    save_student(model, tokenizer, folder)
    assert {path.suffix for path in folder.rglob("*")} <= {".json", ".safetensors", ".jinja", ".txt"}
    assert not any(SECRET.encode() in path.read_bytes() or path.is_symlink() for path in folder.rglob("*"))
    assert not any(b"redistill-" in path.read_bytes() for path in folder.rglob("*.json"))
    load_model(ModelConfig(model=str(folder)))


@pytest.mark.parametrize(
    ("payload", "command"), TRIED if WHOLE else TRIED[::67], ids=lambda value: getattr(value, "name", value)
)
def test_no_command_obeys_a_payload(
    payload: Payload,
    command: str,
    valid: Path,
    world: Path,
    asked: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    name = plant(payload, valid, world, monkeypatch)
    if command == "doctor":
        code = main(["doctor", str(valid / "sft.yaml"), f"student.model={name}"])
    else:
        code = main(arguments(command, name, valid, world / "out"))
    printed = capfd.readouterr().err
    assert "Traceback" not in printed and code in ((0, 2) if payload.refused else (0,)), printed
    check_unmarked(world, asked)


@pytest.mark.parametrize("name", ["model", "adapter", "model.gguf"])
def test_a_valid_local_model_opens_no_connection(name: str, valid: Path, asked: Counter[str]) -> None:
    for load in (load_tokenizer, read_config, load_model):
        load(ModelConfig(model=str(valid / name)))
    assert not asked


def logits(loaded: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = loaded[0](torch.arange(6)[None]).logits
    return result


def test_a_cached_snapshot_is_the_model_that_was_cached(valid: Path, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    cached_snapshot(valid / "model", world / "cache", "owner/name")
    for revision in (None, "main", "a" * 40):
        loaded = load_model(ModelConfig(model="owner/name", revision=revision))
        assert torch.equal(logits(loaded), logits(load_model(ModelConfig(model=str(valid / "model")))))
        assert loaded[0].name_or_path == loaded[1].name_or_path == "owner/name"
        assert add_lora(loaded[0], LoraConfig(), 1).peft_config["default"].revision == "a" * 40
    with pytest.raises(ModelError, match="owner/name: cannot be found"):
        load_model(ModelConfig(model="owner/name", revision="v2"))


def test_a_link_to_a_file_of_the_same_folder_is_followed(valid: Path, world: Path) -> None:
    shutil.copytree(valid / "model", world / "model")
    (world / "model" / "real.safetensors").write_bytes((world / "model" / "model.safetensors").read_bytes())
    (world / "model" / "model.safetensors").unlink()
    (world / "model" / "model.safetensors").symlink_to("real.safetensors")
    (world / "named").symlink_to(world / "model")
    assert torch.equal(
        logits(load_model(ModelConfig(model=str(world / "named")))), logits(load_model(ModelConfig(model=str(valid / "model"))))
    )


def test_a_gguf_file_is_loaded_as_if_it_were_alone(valid: Path, world: Path) -> None:
    shutil.copytree(valid / "adapter", world / "both")
    shutil.copy(valid / "model.gguf", world / "both")
    beside = load_model(ModelConfig(model=str(world / "both" / "model.gguf")))
    assert torch.equal(logits(beside), logits(load_model(ModelConfig(model=str(valid / "model.gguf")))))


def test_a_tokenizer_keeps_no_path_of_the_temporary_folder(valid: Path, world: Path) -> None:
    folder = shutil.copytree(valid / "model", world / "words")
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "a", "b"]))
    sets("tokenizer_config.json", tokenizer_class="BertTokenizer", eos_token="[SEP]")(folder, world)
    tokenizer = load_tokenizer(ModelConfig(model=str(folder)))
    kept = {**vars(tokenizer), **tokenizer.init_kwargs}
    assert kept["name_or_path"] == str(folder) and str(folder / "vocab.txt") in map(str, kept.values())
    assert not [key for key, value in kept.items() if "redistill-" in str(value)]


def test_a_kernel_in_a_loaded_model_is_rejected(valid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kernel(*args: Any, **options: Any) -> Any:
        model, report = original(*args, **options)
        model.model.config._attn_implementation_internal = "someone/kernel"
        return model, report

    original = load_module.AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(load_module.AutoModelForCausalLM, "from_pretrained", kernel)
    with pytest.raises(ModelError, match="_attn_implementation = 'someone/kernel': must be one of eager, sdpa"):
        load_model(ModelConfig(model=str(valid / "model")))


def test_no_temporary_folder_is_left(valid: Path, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (world / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(world / "tmp"))
    for name in ("model", "adapter", "model.gguf"):
        load_model(ModelConfig(model=str(valid / name)))
    (world / "empty").mkdir()
    with pytest.raises(ModelError):
        load_model(ModelConfig(model=str(world / "empty")))
    assert list((world / "tmp").iterdir()) == []


# --- what transformers does with some of them ---------------------------------------------------------------------------


def test_transformers_alone_would_run_code_that_a_tokenizer_class_asks_for(
    valid: Path, world: Path, asked: Counter[str]
) -> None:
    folder = shutil.copytree(valid / "model", world / "hostile")
    mapped = {"AutoConfig": "mine.C"}
    for plants in (
        code(),
        sets("config.json", auto_map=mapped, model_type="mine"),
        sets("tokenizer_config.json", tokenizer_class="AutoConfig"),
    ):
        plants(folder, world / "outside")
    with pytest.raises(AttributeError):  # the class of the payload is no tokenizer
        transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    assert asked["stdin"] == 1 and (world / "outside" / "ran").exists()


def test_transformers_alone_would_read_shards_outside_of_the_folder(valid: Path, world: Path) -> None:
    folder = shutil.copytree(valid / "model", world / "hostile")
    moved_weights(folder, world / "outside")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, dtype=torch.float32)
    assert torch.equal(logits([model]), logits(load_model(ModelConfig(model=str(valid / "model")))))


def test_transformers_alone_would_restore_the_kernel_of_a_config(valid: Path, world: Path) -> None:
    folder = shutil.copytree(valid / "model", world / "hostile")
    sets("config.json", attribute_map={"_attn_implementation": "chosen"}, chosen="someone/kernel")(folder, world)
    config = transformers.AutoConfig.from_pretrained(folder)
    assert config._attn_implementation == "someone/kernel"


def test_transformers_alone_would_ask_the_hub_for_an_adapter_beside_a_gguf_file(
    valid: Path, world: Path, asked: Counter[str]
) -> None:
    shutil.copy(valid / "model.gguf", world)
    sets("adapter_config.json", peft_type="LORA", base_model_name_or_path="owner/name", r=2)(world, world)
    with pytest.raises(Connected):
        transformers.AutoModelForCausalLM.from_pretrained(world, gguf_file="model.gguf")
    assert asked["network"] > 0


def test_there_are_70_payloads_of_every_part() -> None:
    assert len(set(NAMES)) == len(NAMES) >= 70
    assert {payload.part for payload in PAYLOADS} == {"model", "adapter", "gguf", "snapshot"}
