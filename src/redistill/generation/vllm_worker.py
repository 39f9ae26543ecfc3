"""A function for the worker processes of a vLLM server, which reloads all weights.

Only a vLLM server uses this module.  The option `--worker-extension-cls redistill.generation.vllm_worker.HeadReloader` of the
server adds the function to each of its workers, and the route `/collective_rpc` calls the function.  Like
`generation.vllm_plugin`, the module needs no package that a server may lack.
"""

from typing import Protocol

from torch import nn

try:
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
except ImportError:  # vLLM is not installed, such as in tests of the documentation, which import all modules
    VocabParallelEmbedding = nn.Embedding


class ModelRunner(Protocol):
    """The part of vLLM's class `GPUModelRunner` that the extension uses."""

    def reload_weights(self, *, weights_path: str) -> None:
        """Load weights from a folder into the model."""

    def get_model(self) -> nn.Module:
        """Return the model."""


class HeadReloader:
    """Reloads all weights of a worker, among them those of a tied head.

    On a CPU, vLLM 0.32 packs the weights of each layer into a layout of its own.  Its function `reload_weights` packs the
    layers again, except for a head that is tied to the input embedding.  Such a head keeps its old weights.

    Attributes:
        model_runner: The object that runs the model; an attribute of vLLM's worker, to which this class is added.
    """

    model_runner: ModelRunner

    def redistill_reload(self, weights_path: str) -> None:
        """Load the weights in a folder, and pack embedding and head again.

        Args:
            weights_path: The folder, in the format of transformers.
        """
        self.model_runner.reload_weights(weights_path=weights_path)
        for layer in self.model_runner.get_model().modules():
            if isinstance(layer, VocabParallelEmbedding):  # the base class of vLLM's embeddings and heads
                layer.quant_method.process_weights_after_loading(layer)
