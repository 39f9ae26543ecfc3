"""The LM head: hidden states to logits in fp32, by products that read bf16 only where the model runs in bf16."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from redistill.tensors import loss_dtype


@dataclass(frozen=True)
class Products:
    """Matrix products with fp32 results (fp64 for fp64), operands rounded to bf16 only where the model runs in bf16.

    Rounding the *results*, as a bf16 `linear` does, spoils the gradient by tens of per cent once q is near p; rounding the
    operands costs 0.15 %.  fp16 counts as fp32: gradients of logits would underflow in it.
    """

    device: str
    bf16: bool
    result: torch.dtype

    @classmethod
    def like(cls, hidden_ND: torch.Tensor) -> "Products":
        """The products that the forward pass which made `hidden_ND` would use; ask before autocast is switched off."""
        device = hidden_ND.device.type
        autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16
        bf16 = hidden_ND.dtype == torch.bfloat16 or (autocast and hidden_ND.dtype != torch.float64)
        return cls(device, bf16, loss_dtype(hidden_ND))

    @property
    def storage(self) -> torch.dtype:
        """dtype of the operands: bf16 on CUDA (without autograd, which has no rule for mixed products), else the results'."""
        return torch.bfloat16 if self.bf16 and self.device == "cuda" and not torch.is_grad_enabled() else self.result

    def __call__(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        left, right = left.to(self.storage), right.to(self.storage)
        with self._precision():
            if self.storage == torch.bfloat16:
                return torch.mm(left, right, out_dtype=torch.float32)
            return torch.mm(left, right)

    def accumulate(self, total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
        """total += left @ right, in place and in the results' dtype."""
        if self.storage == torch.bfloat16:
            total.add_(self(left, right))
        else:
            with self._precision():
                total.addmm_(left.to(self.storage), right.to(self.storage))

    @contextmanager
    def _precision(self) -> Iterator[None]:
        """No autocast; on a CPU, fp32 operands are read as bf16 where asked, and the process's setting comes back."""
        matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
        before = matmul.fp32_precision
        with torch.autocast(self.device, enabled=False):
            try:
                if self.bf16 and self.device == "cpu":
                    matmul.fp32_precision = "bf16"
                yield
            finally:
                matmul.fp32_precision = before


@dataclass(frozen=True, eq=False)
class Head:
    r"""An LM head: what turns hidden states into logits.

    .. math:: z = \mathrm{cap}\bigl(s\,(h W^\top + b)\bigr), \qquad \mathrm{cap}(z) = c \tanh(z / c)

    Args:
        weight_VD, bias_V: The output embedding and its bias.
        softcap: c of families that cap their logits; None leaves them.
        scale: s of families that scale them.
        vocabulary: Only the first so many classes count (padded vocabularies); a softmax over them renormalises.
    """

    weight_VD: torch.Tensor
    bias_V: torch.Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0
    vocabulary: int | None = None

    @property
    def num_classes(self) -> int:
        """How many classes have a logit."""
        return self.weight_VD[: self.vocabulary].shape[0]

    @property
    def num_bytes(self) -> int:
        """What its weight takes in float32."""
        return self.num_classes * self.weight_VD.shape[1] * torch.float32.itemsize

    def logits(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        """logits_NV of `hidden_ND`, float32 whatever the weights are (float64 for float64); autocast does not reach them."""
        return self.finish(self.raw(hidden_ND, Products.like(hidden_ND)))

    def prepared(self, hidden_ND: torch.Tensor) -> "Head":
        """This head detached, cut to its vocabulary, and stored as `logits` of such hidden states reads it.

        Made once before many calls of `logits`, it spares each of them a conversion of the whole weight.
        """
        storage = Products.like(hidden_ND).storage
        bias_V = None if self.bias_V is None else self.bias_V.detach()[: self.vocabulary]
        return replace(self, weight_VD=self.weight_VD.detach()[: self.vocabulary].to(storage), bias_V=bias_V)

    def raw(self, hidden_ND: torch.Tensor, products: Products) -> torch.Tensor:
        """h W^T + b."""
        raw_NV = products(hidden_ND, self.weight_VD[: self.vocabulary].T)
        return raw_NV if self.bias_V is None else raw_NV.add_(self.bias_V[: self.vocabulary].to(raw_NV.dtype))

    def finish(self, raw_NV: torch.Tensor) -> torch.Tensor:
        """The logits of raw products: scaled, then capped."""
        return finished(raw_NV, self.scale, self.softcap)


def finished(raw_NV: torch.Tensor, scale: float, softcap: float | None) -> torch.Tensor:
    """`Head.finish` of a head's numbers alone."""
    logits_NV = raw_NV if scale == 1.0 else raw_NV * scale
    return logits_NV if softcap is None else softcap * torch.tanh(logits_NV / softcap)
