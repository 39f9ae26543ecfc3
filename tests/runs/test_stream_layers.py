"""cache-teacher --stream-layers writes bitwise the folder of a teacher that is loaded as a whole."""

from pathlib import Path
from typing import Any

import pytest

from redistill.cli.main import main
from redistill.config.run import Run
from redistill.runs import cache_models, teacher_cache
from redistill.teachers import filling
from tests.faults.test_cached_teacher import SHARD_BYTES, content, write_recipe
from tests.worlds import GPT2, LLAMA, tiny_run

FOUR_LAYERS = {**LLAMA, "num_hidden_layers": 4}


def kd(folder: Path, config: dict[str, Any] = FOUR_LAYERS, **sections: Any) -> Run:
    return tiny_run(folder, "kd", config=config, **{"data": {"tests": {}}, **sections})


def caches(recipe: Path, *overrides: str) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The stores that are filled with the whole teacher and layer by layer."""
    names = recipe.with_suffix(".whole"), recipe.with_suffix(".streamed")
    assert main(["cache-teacher", str(recipe), *overrides, "--out", str(names[0])]) == 0
    assert main(["cache-teacher", str(recipe), *overrides, "--stream-layers", "--out", str(names[1])]) == 0
    return content(names[0]), content(names[1])


@pytest.mark.parametrize("at_once", [1, 700, 10**9])
def test_the_folder_is_bitwise_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(filling, "SHARD_BYTES", SHARD_BYTES)
    monkeypatch.setattr(teacher_cache, "STREAMED_BYTES", at_once * 4 * 32)
    whole, streamed = caches(write_recipe(tmp_path / "kd.yaml", kd(tmp_path)))
    assert sum(name.startswith("states-") for name in whole) > 2
    assert streamed == whole


@pytest.mark.parametrize(
    ("config", "overrides"),
    [
        (GPT2, ["teacher.cache_dtype=bfloat16"]),
        (FOUR_LAYERS, ["teacher.dtype=bfloat16"]),
        (FOUR_LAYERS, ["teacher.cache_form={kind: top_k, k: 5}"]),
        (FOUR_LAYERS, ["teacher.cache_form={kind: sampled, draws: 7}", "training.micro_batch_size=3"]),
        (FOUR_LAYERS, ["student={model: teacher, initialise: {layers: 2}}"]),
    ],
    ids=str,
)
def test_every_form_and_student_has_the_same_folder(tmp_path: Path, config: dict[str, Any], overrides: list[str]) -> None:
    whole, streamed = caches(write_recipe(tmp_path / "kd.yaml", kd(tmp_path, config)), *overrides)
    assert streamed == whole


def test_the_teacher_is_never_loaded_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = write_recipe(tmp_path / "kd.yaml", kd(tmp_path))
    monkeypatch.setattr(cache_models, "load_models", lambda *arguments, **named: pytest.fail("a model is loaded"))
    own = "student={model: teacher, initialise: {layers: 2}}"
    assert main(["cache-teacher", str(recipe), own, "--stream-layers", "--out", str(tmp_path / "store")]) == 0


def test_a_store_of_one_kind_of_call_is_completed_by_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filling, "SHARD_BYTES", SHARD_BYTES)
    recipe, out = write_recipe(tmp_path / "kd.yaml", kd(tmp_path)), tmp_path / "store"
    write, names = filling.write_tensors, []

    def write_two(path: Path, tensors: Any) -> str:
        names.append(path.name)
        if len(names) > 2:
            raise KeyboardInterrupt
        return write(path, tensors)

    with monkeypatch.context() as patch:
        patch.setattr(filling, "write_tensors", write_two)
        with pytest.raises(KeyboardInterrupt):
            teacher_cache_of(recipe, out)
    assert main(["cache-teacher", str(recipe), "--stream-layers", "--out", str(out)]) == 0
    assert main(["cache-teacher", str(recipe), "--out", str(tmp_path / "whole")]) == 0
    assert content(out) == content(tmp_path / "whole")


def teacher_cache_of(recipe: Path, out: Path) -> None:
    from redistill.config.run import load_config
    from redistill.runs.cache_teacher import cache_teacher

    cache_teacher(load_config(recipe), out)


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (["method=seqkd"], "--stream-layers: the policy teacher_generated needs text of the teacher"),
        (["teacher.dtype=auto"], "dtype auto cannot be read layer by layer; leave out --stream-layers"),
    ],
    ids=str,
)
def test_what_needs_the_whole_teacher_is_rejected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], fault: str
) -> None:
    recipe, out = write_recipe(tmp_path / "kd.yaml", kd(tmp_path)), tmp_path / "store"
    assert main(["cache-teacher", str(recipe), *overrides, "--stream-layers", "--out", str(out)]) == 2
    assert fault in capsys.readouterr().err.splitlines()[-1]
    assert not out.exists()
