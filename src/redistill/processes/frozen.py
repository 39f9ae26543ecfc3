"""A frozen model, such as a teacher, that is sharded over the processes of a job.

The processes of a job run a teacher on different texts, and make different numbers of forward passes.  A forward pass of a
sharded model needs the parameters of all processes.  Therefore a process that has no pass left takes part in the passes of
the others: it sends its parameters, and computes nothing.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, TypeVar, cast

import torch
from torch import distributed, nn

from redistill.processes import signals

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import FSDPModule

Value = TypeVar("Value")
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")


class Frozen:
    """Placement of a frozen model.

    The methods of this base class implement a model that every process has in full.

    Example:
        >>> with Frozen().passes() as frozen:
        ...     frozen.gather([1])
        [1]
    """

    world: int = 1
    """Number of parts into which the parameters are divided."""

    @contextmanager
    def root(self) -> Iterator[None]:
        """Context in which the parameters outside of the layers are complete.

        They are those of embeddings, final norm and head.  Every process must enter this context.
        """
        yield

    @contextmanager
    def passes(self) -> Iterator["Frozen"]:
        """Context in which the model may be called.

        Every process must enter this context, and may make any number of forward passes.  Inside it, use `gather` of this
        object to communicate.  The parameters of `root` are complete inside it.
        """
        yield self

    @contextmanager
    def gathered(self) -> Iterator["Frozen"]:
        """Context in which each process has all parameters.

        Forward passes do not communicate inside this context.  Every process must enter this context.
        """
        yield self

    def gather(self, values: list[Value]) -> list[Value]:
        """Gather the lists of all processes, as `signals.gather` does."""
        return signals.gather(values)


class FrozenShards(Frozen):
    """A frozen model whose parameters are sharded over all processes (FSDP2).

    The parameters of a layer are gathered for its forward pass, while the layer before it computes.  All other parameters are
    gathered in the context `root`.  The model is moved to its device layer by layer, so that the device never has all
    parameters.

    Args:
        model: The model, on the CPU or on `device`.  It is sharded in place, and must be frozen.
        body: The submodule whose forward pass calls all layers once, in their order.
        layers: The layers.  A parameter must not be shared by two layers, or by a layer and the rest of the model.
        device: Device of the shards.

    Raises:
        RuntimeError: the model is called outside of the contexts `passes` and `gathered`.
    """

    def __init__(self, model: nn.Module, body: nn.Module, layers: Iterable[nn.Module], device: torch.device | str) -> None:
        from torch.distributed.device_mesh import init_device_mesh

        self.world = distributed.get_world_size()
        mesh = init_device_mesh(torch.device(device).type, (self.world,))
        self._layers = [_sharded(layer, mesh) for layer in layers]
        self._root = _sharded(model, mesh)
        self._has_root = self._is_open = self._is_whole = False
        following: list[FSDPModule | None] = [*self._layers[1:], None]
        for layer, after in zip(self._layers, following, strict=True):
            self._gather_around(layer, after)
        body.register_forward_pre_hook(lambda module, inputs: self._announce())

    @contextmanager
    def root(self) -> Iterator[None]:
        """Context with complete parameters outside of the layers; see `Frozen.root`."""
        if self._has_root:
            yield
            return
        self._root.unshard()
        self._has_root = True
        try:
            yield
        finally:
            self._has_root = False
            self._root.reshard()

    @contextmanager
    def passes(self) -> Iterator[Frozen]:
        """Context in which the model may be called, as in `Frozen.passes`."""
        if self._is_open or self._is_whole:
            yield self
            return
        with self.root():
            self._is_open = True
            try:
                yield self
                self._join()
            finally:
                self._is_open = False

    @contextmanager
    def gathered(self) -> Iterator[Frozen]:
        """Context in which each process has all parameters, as in `Frozen.gathered`."""
        with self.root(), ExitStack() as stack:
            for layer in self._layers:
                stack.callback(layer.reshard)
                layer.unshard()
            self._is_whole = True
            try:
                yield self
            finally:
                self._is_whole = False

    def gather(self, values: list[Value]) -> list[Value]:
        """Gather the lists of all processes after their forward passes."""
        if self._is_open:
            self._join()
        return signals.gather(values)

    def _announce(self) -> None:
        """Announce a forward pass of this process, so that all processes send their parameters."""
        if self._is_whole:
            return
        if not self._is_open:
            raise RuntimeError("a sharded model was called outside of Frozen.passes; enter this context in every process")
        signals.gather([True])

    def _join(self) -> None:
        """Take part in the forward passes of the other processes, until no process makes one."""
        while any(signals.gather([False])):
            for layer in self._layers:
                layer.unshard()
                layer.reshard()

    def _gather_around(self, layer: "FSDPModule", after: "FSDPModule | None") -> None:
        """Gather the parameters of a layer before its forward pass, and those of the layer after it during the pass."""

        def gather(module: nn.Module, inputs: object) -> None:
            layer.unshard()
            if after is not None and not self._is_whole:
                after.unshard(async_op=True)

        def release(module: nn.Module, inputs: object, output: object) -> None:
            if not self._is_whole:
                layer.reshard()

        module = cast(nn.Module, layer)
        module.register_forward_pre_hook(gather, prepend=True)
        module.register_forward_hook(release)


def _sharded(module: nn.Module, mesh: "DeviceMesh") -> "FSDPModule":
    """Shard the parameters of a module that are not sharded yet, and return the module.

    FSDP's own hooks are removed, because they require calls of the root module, in equal numbers.
    """
    from torch.distributed.fsdp import fully_shard

    before = {name: set(getattr(module, name)) for name in _HOOKS}
    fully_shard(module, mesh=mesh)
    for name, kept in before.items():
        hooks = getattr(module, name)
        for number in [number for number in hooks if number not in kept]:
            del hooks[number]
    return cast("FSDPModule", module)
