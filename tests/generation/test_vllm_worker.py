"""The function of redistill in the workers of a vLLM server, with stand-ins for the classes of vLLM."""

import torch
from torch import nn

from redistill.generation import vllm_worker
from redistill.generation.vllm_worker import HeadReloader


class Packed:
    """Packs the weights of a layer, as vLLM does on a CPU."""

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        layer.packed = layer.weight.detach().clone()


class Embedding(nn.Embedding):
    """An embedding or head of vLLM, whose computations use the packed weights."""

    def __init__(self) -> None:
        super().__init__(4, 2)
        self.quant_method = Packed()
        self.quant_method.process_weights_after_loading(self)


class Linear(nn.Linear):
    """A layer without unpacked weights, which must not be packed again."""

    quant_method = None


class Runner:
    """Loads weights, but packs no embedding again."""

    def __init__(self) -> None:
        self.model = nn.ModuleDict({"embed": Embedding(), "head": Embedding(), "layer": Linear(2, 2)})
        self.model["head"].weight = self.model["embed"].weight  # tied

    def get_model(self) -> nn.Module:
        return self.model

    def reload_weights(self, *, weights_path: str) -> None:
        assert weights_path == "/weights"
        with torch.no_grad():
            self.model["embed"].weight.add_(1.0)


def test_a_tied_head_is_packed_again(monkeypatch) -> None:
    monkeypatch.setattr(vllm_worker, "VocabParallelEmbedding", Embedding)
    worker = HeadReloader()
    worker.model_runner = Runner()
    worker.redistill_reload("/weights")
    for name in ("embed", "head"):
        layer = worker.model_runner.model[name]
        assert torch.equal(layer.packed, layer.weight)


def test_the_name_of_the_class_is_that_of_the_option() -> None:
    from redistill.servers.vllm import EXTENSION, RELOAD_METHOD

    assert f"{HeadReloader.__module__}.{HeadReloader.__qualname__}" == EXTENSION
    assert callable(getattr(HeadReloader, RELOAD_METHOD))
