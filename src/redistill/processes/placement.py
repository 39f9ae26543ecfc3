"""Placement of the parameters of a module over the processes of a job.

The parameters are in one process, replicated in each process, or sharded over all processes.  Most methods of a placement
communicate.  Therefore all processes of a job must call them in the same order.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import distributed, nn

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule

BUCKET_BYTES = 64 * 2**20
"""Maximum size of a bucket, in bytes; a larger gradient is summed in a message of its own."""


class Placement:
    """How a module is distributed over the processes of a job.

    The methods of this base class implement a job of one process.

    Example:
        >>> module = nn.Linear(2, 1)
        >>> Placement().wrap(module, "cpu") is module, sorted(Placement().state(module))
        (True, ['bias', 'weight'])
    """

    passes_communicate: bool = False
    """Whether processes communicate during the forward and the backward pass.

    If True, every process must make the same number of passes. Between the first and the last pass of an update, a process
    must not stop because of a signal. It must not retry with a smaller batch after memory ran out either.
    """

    def wrap(self, module: nn.Module, device: torch.device | str) -> nn.Module:
        """Move ``module`` to ``device``, and distribute its parameters in place.

        The result is ``module``.  Call this method before the optimizer is built, because it may replace the parameters.
        """
        return module.to(device)

    def unsharded(self, module: nn.Module) -> AbstractContextManager[None]:
        """Context in which ``module`` has its full parameters, without gradients.

        Inside the context, any submodule may be called, and calls do not communicate. Do not change the parameters inside the
        context. Do not request a state dict, which would shard the parameters again. Do not enter the context between a
        forward pass and the backward pass of the same micro-batch.
        """
        return torch.no_grad()

    def reduce(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum the gradients over all processes, in place.

        The method does nothing with one process, or if the backward pass already sums the gradients.

        Args:
            parameters: The trained parameters; those without a gradient are left out.
        """

    def state(self, module: nn.Module) -> dict[str, torch.Tensor]:
        """Return the full state dict in process 0, and an empty dict in all others.

        Every process must call this method.

        Args:
            module: A module that `wrap` returned.
        """
        return full(module.state_dict(keep_vars=True))


class Single(Placement):
    """One process holds all parameters.

    Example:
        >>> Single().passes_communicate
        False
    """


class Replicated(Placement):
    """A copy of the module in each process, with the initial state of process 0.

    Gradients are summed over the processes, not averaged.

    Example:
        >>> Replicated().passes_communicate  # only `wrap` and `reduce` are collective
        False
    """

    @torch.no_grad()
    def wrap(self, module: nn.Module, device: torch.device | str) -> nn.Module:
        """Move the module to its device, and copy the state of process 0.

        Every process must call this method.
        """
        for tensor in module.to(device).state_dict().values():
            distributed.broadcast(tensor, src=0)
        return module

    @torch.no_grad()
    def reduce(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum the gradients over all processes; collective.

        Small gradients are copied into buckets (flat tensors), so that one message has many of them.
        """
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for bucket in _buckets(gradients, BUCKET_BYTES):
            if len(bucket) == 1:
                distributed.all_reduce(bucket[0])
                continue
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            distributed.all_reduce(flat)
            for gradient, part in zip(bucket, flat.split([gradient.numel() for gradient in bucket]), strict=True):
                gradient.copy_(part.view_as(gradient))


class Sharded(Placement):
    """Parameters, gradients and optimizer state sharded over all processes (FSDP2).

    A unit is a submodule whose parameters are gathered for its forward pass, and again for its backward pass. All other
    parameters, such as those of embeddings and head, belong to the root module. They are gathered when the forward pass of
    the root begins, and sharded again when its backward pass ends. Between these times, other code may read them and add to
    their ``grad``.

    Gradients are summed over the processes, not averaged.

    Args:
        units: Function from the module to its units, usually its transformer layers. A parameter must not be shared by two
            units, or by a unit and the root.

    Raises:
        RuntimeError: the module is called without gradients outside `unsharded`.

    Example:
        >>> placement = Sharded(lambda model: model.layers)
        >>> placement.passes_communicate  # a micro-batch of one process needs the parameters of all
        True
    """

    passes_communicate = True

    def __init__(self, units: Callable[[nn.Module], Iterable[nn.Module]]) -> None:
        self._units = units

    def wrap(self, module: nn.Module, device: torch.device | str) -> nn.Module:
        """Shard each unit, then the root module; every process must call this method.

        A unit is moved to the device when it is sharded, so that the device never has all parameters.
        """
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(torch.device(device).type, (distributed.get_world_size(),))
        for unit in self._units(module):
            fully_shard(unit, mesh=mesh)
        # The backward pass needs the root's parameters first, and a gradient may have been added to them already.
        fully_shard(module, mesh=mesh, reshard_after_forward=False)
        for part in _sharded_parts(module):
            # Coefficients are computed from global counts, so gradients are summed. Gloo supports no reduction except SUM.
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)
            # Some parameters, such as those of a divergence, may be unused in the micro-batch of one process only.
            part.set_reduce_scatter_unused_params(True, recurse=False)
        module.register_forward_pre_hook(_require_gradients, prepend=True)
        return module

    @contextmanager
    def unsharded(self, module: nn.Module) -> Iterator[None]:
        """Context with full parameters, as in `Placement.unsharded`.

        Every process must enter this context.
        """
        parts = _sharded_parts(module)
        with ExitStack() as stack, torch.no_grad():
            for part in parts:
                stack.callback(part.reshard)
                part.unshard()
            # FSDP's hooks would shard a unit again after its first call, and treat the first unit that is called as the root.
            for attributes in map(vars, parts):
                hooks = {name: attributes[name] for name in ("_forward_pre_hooks", "_forward_hooks")}
                stack.callback(attributes.update, hooks)
                attributes.update({name: OrderedDict() for name in hooks})
            yield


def _buckets(gradients: Sequence[torch.Tensor], max_bytes: int) -> Iterator[list[torch.Tensor]]:
    """Yield gradients in buckets of one dtype and device, of at most `max_bytes` unless a bucket has one gradient."""
    bucket: list[torch.Tensor] = []
    for gradient in gradients:
        is_like = all((other.dtype, other.device) == (gradient.dtype, gradient.device) for other in bucket[:1])
        if bucket and (not is_like or sum(other.nbytes for other in bucket) + gradient.nbytes > max_bytes):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket


def full(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Collect possibly sharded tensors on the CPU of process 0.

    Every process must call this function with the same names in the same order. A tensor that has several names is
    collected once, so that tied parameters stay tied. Create state dicts with ``keep_vars=True``, because ties are lost
    otherwise.

    Args:
        tensors: Tensors by name, sharded or not.

    Returns:
        In process 0, the full tensors without gradient. In all other processes an empty dictionary, to save memory.

    Example:
        >>> full({"weight": torch.ones(2, requires_grad=True)})
        {'weight': tensor([1., 1.])}
    """
    from torch.distributed.tensor import DTensor

    is_first = not distributed.is_initialized() or distributed.get_rank() == 0
    collected: dict[int, torch.Tensor] = {}
    for tensor in tensors.values():
        if id(tensor) not in collected:
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            collected[id(tensor)] = whole.detach().cpu() if is_first else whole.new_empty(0)
    return {name: collected[id(tensor)] for name, tensor in tensors.items()} if is_first else {}


def placed_like(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Shard a full tensor like ``like``, and return the part of this process.

    The call does not communicate.

    Args:
        tensor: The full tensor, of shape [...]; the same in every process.
        like: A tensor of the same shape [...]. If it is not sharded, ``tensor`` is returned as it is.

    Returns:
        The part of ``tensor`` as a sharded tensor, or ``tensor`` itself.

    Example:
        >>> placed_like(torch.ones(2), like=torch.zeros(2))
        tensor([1., 1.])
    """
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def gathered(tensor: torch.Tensor) -> torch.Tensor:
    """Return the full tensor of a tensor that may be sharded.

    If the tensor is sharded, every process must call this function.

    Args:
        tensor: A tensor of shape [...], sharded or not.

    Returns:
        The full tensor, on the same device.

    Example:
        >>> gathered(torch.tensor(2.5))
        tensor(2.5000)
    """
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _sharded_parts(module: nn.Module) -> "list[FSDPModule]":
    """Return the root module and its units, in the same order in every process."""
    from torch.distributed.fsdp import FSDPModule

    return [part for part in module.modules() if isinstance(part, FSDPModule)]


def _require_gradients(module: nn.Module, inputs: object) -> None:
    """Raise RuntimeError if a sharded module is called while gradients are disabled.

    The function is registered as a forward pre-hook of the module.
    """
    # The root releases its full parameters only in a backward pass. Without one, they would be outdated after the next update.
    if not torch.is_grad_enabled():
        raise RuntimeError("a sharded module was called without gradients; enter Placement.unsharded first")
