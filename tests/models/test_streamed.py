"""A model whose layers are read one after another has bitwise the states of the whole model, or is rejected by name."""

import gc
import signal
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from redistill.contracts import Batch, TokenSequence, items_of
from redistill.data.collate import collate
from redistill.errors import Interrupted, ModelError
from redistill.models import layer_files as files_of_layers
from redistill.models.families import body, head, layer_list
from redistill.models.initialise import fresh_model
from redistill.models.layer_files import layer_files
from redistill.models.load import ModelConfig, load_model
from redistill.models.streamed import StreamedBody
from redistill.randomness import generator
from tests.models.family_configs import FAMILIES, is_known
from tests.worlds import LLAMA, write_model

STREAMED = ("GPT-2", "OPT", "Llama 3", "Qwen3-MoE", "Gemma 2", "Gemma 3", "Phi-3", "Mixtral", "gpt-oss", "Cohere 2", "Mamba 2")
REJECTED = ("Gemma 3n", "FalconMamba")


def batches() -> list[Batch]:
    """Two batches, one of them with padding."""
    made = []
    for sample, length in enumerate((17, 12, 5)):
        ids = generator(1, "streamed", sample).integers(3, 60, length).tolist()
        supervised = tuple(position > 1 for position in range(length))
        made.append(TokenSequence(sample=sample, token_ids=tuple(ids), supervised=supervised, origin="dataset"))
    return [collate(items_of(some, "distillation"), pad_id=0) for some in (made[:2], made[2:])]


def streamed(source: ModelConfig, progress: list[float] | None = None) -> list[torch.Tensor]:
    with layer_files(source) as files:
        assert files is not None
        return list(StreamedBody(files, "cpu").read(batches(), ([] if progress is None else progress).append))


@torch.no_grad()
def whole(model: Any) -> list[torch.Tensor]:
    return [body(model)(b.input_ids_BT, b.attention_mask_BT).flatten(0, 1)[b.position_N] for b in batches()]


def saved(folder: Path, family: str) -> Any:
    if not is_known(family):
        pytest.skip("this release of transformers does not have the family")
    model = fresh_model(FAMILIES[family], seed=3)
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("family", STREAMED)
def test_the_states_are_bitwise_those_of_the_whole_model(tmp_path: Path, family: str) -> None:
    model, progress = saved(tmp_path, family), []
    found = streamed(ModelConfig(model=str(tmp_path)), progress)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, whole(model), strict=True))
    assert progress == sorted(progress) and len(progress) == 2 * model.config.num_hidden_layers and progress[-1] < 1


@pytest.mark.parametrize("family", REJECTED)
def test_a_family_whose_layers_cannot_be_run_by_themselves_is_rejected_by_name(tmp_path: Path, family: str) -> None:
    saved(tmp_path, family)
    kind = FAMILIES[family]["model_type"]
    with pytest.raises(
        ModelError, match=rf"the {kind}\w* family cannot be run layer by layer \(.*\); leave out --stream-layers"
    ):
        streamed(ModelConfig(model=str(tmp_path)))


def test_weights_in_16_bits_and_an_untied_head(tmp_path: Path) -> None:
    source = ModelConfig(model=write_model(tmp_path / "teacher", {**LLAMA, "tie_word_embeddings": False}, 1), dtype="bfloat16")
    model = load_model(source)[0].eval()
    found, expected = streamed(source), whole(model)
    assert all(mine.dtype == torch.bfloat16 and torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))
    with layer_files(source) as files:
        first = StreamedBody(files, "cpu").first
    assert torch.equal(head(first).weight_VD, head(model).weight_VD)


def test_one_layer_is_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[Any]] = []
    counts: list[int] = []
    create = files_of_layers._filled

    def counted(*arguments: Any) -> Any:
        gc.collect()
        counts.append(sum(reference() is not None for reference in alive))
        model = create(*arguments)
        alive.append(weakref.ref(layer_list(model)[1][0].self_attn.q_proj.weight))
        return model

    source = ModelConfig(model=write_model(tmp_path / "teacher", LLAMA, 1))
    monkeypatch.setattr(files_of_layers, "_filled", counted)
    with layer_files(source) as files:
        stream = StreamedBody(files, "cpu")
        stream.release_first()
        counts.clear()
        alive.clear()
        embedding = stream.first.get_input_embeddings().weight
        for _ in stream.read(batches(), lambda fraction: None):
            pass
    assert counts == [0] * files.num_layers
    assert embedding.data_ptr() == head(stream.first).weight_VD.data_ptr()


def test_an_interruption_stops_the_work(tmp_path: Path) -> None:
    def tick(fraction: float) -> None:
        if fraction > 0.4:
            raise Interrupted(signal.SIGTERM)

    with layer_files(ModelConfig(model=write_model(tmp_path / "teacher", LLAMA, 1))) as files:
        assert files is not None
        with pytest.raises(Interrupted):
            list(StreamedBody(files, "cpu").read(batches(), tick))
