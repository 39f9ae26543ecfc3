"""The body of a model whose layers are read from disk one after another.

Each layer processes all batches before the next layer is loaded.  Therefore only one layer, and the weights outside of the
layers, are in memory.  A layer is loaded as a model that has only this layer, so that the family's own code computes masks
and positions.  The output of the previous layer replaces the embeddings of this model.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import nn

from redistill.contracts import Batch
from redistill.errors import ModelError
from redistill.interfaces import CausalModel
from redistill.models.families import body, head, layer_list, text_config
from redistill.models.layer_files import LayerFiles, layer_name

Tick = Callable[[float], None]
"""Function that is called repeatedly with the fraction of the work that is done; it may raise an exception to stop the work."""


class StreamedBody:
    """Computes the last hidden states of batches, with one layer in memory at a time.

    Args:
        files: The files of the model.
        device: Device of the computation.

    Attributes:
        first: A model that has only the first layer, with the head of the whole model, on `device`.

    Raises:
        ModelError: models of this family cannot be run layer by layer.
    """

    def __init__(self, files: LayerFiles, device: torch.device | str) -> None:
        self._files, self._device = files, device
        self._outside: Mapping[str, torch.Tensor] | None = None
        try:
            first = self._model(0)
        except ModelError as error:
            if not str(error).startswith("initialise.layers"):
                raise
            raise self._rejected("a model of one of its layers cannot be built") from error
        pattern = layer_name(layer_list(first)[0].rpartition(".")[2])
        self._outside = {name: weight for name, weight in first.state_dict().items() if not pattern.fullmatch(name)}
        self._check(first)
        self.first = first

    def release_first(self) -> None:
        """Free the memory of the layer of `first`; the head of `first` stays in memory."""
        layer_list(self.first)[1].to("meta")

    @torch.no_grad()
    def read(self, batches: Sequence[Batch], tick: Tick) -> Iterator[torch.Tensor]:
        """Yield the last hidden states of the rows of each batch, [N, E].

        The first layer processes all batches, then the second layer, and so on.  `device` must have memory for the hidden
        states of all tokens of the batches.

        Args:
            batches: The batches, on `device`.
            tick: Function that receives the fraction of the work that is done.
        """
        hidden: list[torch.Tensor | None] = [None] * len(batches)
        steps = self._files.num_layers * len(batches)
        for layer in range(self._files.num_layers):
            model, is_last = self._model(layer), layer == self._files.num_layers - 1
            for index, batch in enumerate(batches):
                tick((layer * len(batches) + index) / steps)
                states_BTE = _run_layer(model, batch.input_ids_BT, batch.attention_mask_BT, hidden[index], is_last)
                hidden[index] = states_BTE.flatten(0, 1)[batch.position_N] if is_last else states_BTE
            del model
        for states_NE in hidden:
            assert states_NE is not None
            yield states_NE

    def _model(self, layer: int) -> CausalModel:
        """Return a model that has only the layer with the index `layer`, on the device.

        Raises:
            ModelError: the family's weights have other names in files than in memory.
        """
        model = self._files.read((layer,), self._outside)
        if model is None:
            raise self._rejected("its weights have other names in files than in memory")
        model.to(self._device).requires_grad_(False)
        return model

    @torch.no_grad()
    def _check(self, first: CausalModel) -> None:
        """Check that running the layers one by one gives the output of the whole model.

        The check uses a model of two layers, which both have the weights of the first layer.

        Raises:
            ModelError: the results differ, or the layer cannot be run by itself.
        """
        num_tokens = min(8, head(first).num_classes)
        ids_BT = torch.arange(num_tokens, device=self._device).repeat(2, 1)
        mask_BT = torch.ones_like(ids_BT)
        mask_BT[1, num_tokens // 2 :] = 0
        weights = _twice(first, self._outside or {})
        both = self._files.with_weights((0, 0), weights)
        if both is None:
            raise self._rejected("a model with two copies of its first layer cannot be built")
        expected_BTE = body(both.to(self._device))(ids_BT, mask_BT)
        try:
            middle_BTE = _run_layer(first, ids_BT, mask_BT, None, is_last=False)
            found_BTE = _run_layer(first, ids_BT, mask_BT, middle_BTE, is_last=True)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise self._rejected("one of its layers cannot be run by itself") from error
        is_token_BT = mask_BT.bool()
        if not torch.equal(found_BTE[is_token_BT], expected_BTE[is_token_BT]):
            raise self._rejected("its layers depend on more than the output of the previous layer")

    def _rejected(self, reason: str) -> ModelError:
        family = text_config(self._files.whole).model_type
        return ModelError(
            f"{self._files.name}: the {family} family cannot be run layer by layer ({reason}); leave out --stream-layers"
        )


class _Reached(Exception):
    """Raised to end the forward pass of a model after its only layer."""


def _run_layer(
    model: CausalModel, ids_BT: torch.Tensor, mask_BT: torch.Tensor, before_BTE: torch.Tensor | None, is_last: bool
) -> torch.Tensor:
    """Return the output of one layer of a model.

    If the layer is the last one of the whole model, the output of the final norm is returned instead.

    Args:
        model: A model that has only this layer.
        ids_BT, mask_BT: Token ids and mask of a batch.
        before_BTE: The output of the previous layer; None for the first layer, which reads the embeddings.
        is_last: Whether the layer is the last one of the whole model.
    """
    (layer,) = layer_list(model)[1]
    reached: list[torch.Tensor] = []

    def replace(
        module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]] | None:
        if before_BTE is None:
            return None
        return ((before_BTE, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": before_BTE})

    def keep(module: nn.Module, args: tuple[object, ...], output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        if not is_last:
            reached.append(output[0] if isinstance(output, tuple) else output)
            raise _Reached

    handles = [layer.register_forward_pre_hook(replace, with_kwargs=True), layer.register_forward_hook(keep)]
    try:
        return body(model)(ids_BT, mask_BT)
    except _Reached:
        return reached[0]
    finally:
        for handle in handles:
            handle.remove()


def _twice(first: CausalModel, outside: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the weights of a model with two copies of the layer of `first`."""
    pattern = layer_name(layer_list(first)[0].rpartition(".")[2])
    weights = dict(outside)
    for name, weight in first.state_dict().items():
        if (match := pattern.fullmatch(name)) is not None:
            weights |= {f"{match[1]}{index}{match[3]}": weight for index in range(2)}
    return weights
