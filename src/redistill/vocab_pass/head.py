"""The LM head, which maps hidden states to logits in float32.

Hidden states and weights are rounded to bf16 before they are multiplied, if the model runs in bf16.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from redistill.tensors import loss_dtype
from redistill.vocab_pass.cutting import cuts

PART_BYTES = 64 * 2**20
"""Maximum size of a product with bf16 operands that is added to a gradient; larger products are computed in parts."""


@dataclass(frozen=True)
class Products:
    """Matrix products with fp32 results (fp64 results for fp64 operands).

    The operands are the two matrices that are multiplied, such as hidden states and weights.  The operands are rounded to
    bf16 only if the model runs in bf16.

    In bf16, torch's `linear` also rounds the *results*.  When the student's distribution is close to the teacher's, rounded
    results change the gradient by tens of per cent; rounded operands change it by 0.15 %.  fp16 operands are converted to
    fp32, since the gradient with respect to the logits would underflow in fp16.

    Args:
        device: Device type, such as "cuda".
        bf16: Whether operands are rounded to bf16.
        result: dtype of the results, float32 or float64.
    """

    device: str
    bf16: bool
    result: torch.dtype

    @classmethod
    def like(cls, hidden_ND: torch.Tensor) -> "Products":
        """Return `Products` with the precision in which the model computed `hidden_ND`.

        Operands are rounded to bf16 if `hidden_ND` is bf16, or if autocast to bf16 is active and `hidden_ND` is not float64.
        Call this method before autocast is disabled.
        """
        device = hidden_ND.device.type
        autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16
        bf16 = hidden_ND.dtype == torch.bfloat16 or (autocast and hidden_ND.dtype != torch.float64)
        return cls(device, bf16, loss_dtype(hidden_ND))

    @property
    def storage(self) -> torch.dtype:
        """The dtype in which the operands of the matrix products are stored.

        The dtype is torch.bfloat16 if the device is CUDA, `self.bf16` is True and autograd is disabled.  Otherwise it is
        `self.result`.  Autograd cannot differentiate a product of bf16 operands with a float32 result.
        """
        return torch.bfloat16 if self.bf16 and self.device == "cuda" and not torch.is_grad_enabled() else self.result

    def __call__(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        left, right = left.to(self.storage), right.to(self.storage)
        with self._precision():
            if self.storage == torch.bfloat16:
                return torch.mm(left, right, out_dtype=torch.float32)
            return torch.mm(left, right)

    def accumulate(self, total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
        """Add left @ right to `total` in place; the sum has the dtype `self.result`."""
        if self.storage == torch.bfloat16:
            for rows in cuts(slice(0, len(total)), PART_BYTES // total[:1].nbytes):
                total[rows].add_(self(left[rows], right))
        else:
            with self._precision():
                total.addmm_(left.to(self.storage), right.to(self.storage))

    @contextmanager
    def _precision(self) -> Iterator[None]:
        """Context without autocast; it also sets the precision of products on a CPU.

        If `self.bf16` is True, products of fp32 tensors on a CPU round their operands to bf16.
        """
        matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # not annotated in torch
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
    r"""An LM head, which maps hidden states to logits.

    .. math:: z = \mathrm{cap}\bigl(s\,(h W^\top + b)\bigr), \qquad \mathrm{cap}(z) = c \tanh(z / c)

    h is a hidden state and z its logits.

    Args:
        weight_VD, bias_V: The output embedding W and its bias b; `bias_V` is None for a head without bias.
        softcap: The bound c of the absolute logits, > 0; None if the model does not bound its logits.
        scale: The factor s of the logits.
        vocabulary: Number V of classes, if W has more rows (a padded vocabulary).  Only the first V rows of W are used, and
            probabilities are normalised over V classes.  If None, all rows of W are used.

    Example:
        >>> head = Head(torch.tensor([[1.0, 0.0], [0.0, 1.0], [9.0, 9.0]]), scale=0.5, vocabulary=2)
        >>> head.num_classes, head.logits(torch.tensor([[2.0, 4.0]]))
        (2, tensor([[1., 2.]]))
    """

    weight_VD: torch.Tensor
    bias_V: torch.Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0
    vocabulary: int | None = None

    @property
    def num_classes(self) -> int:
        """Number V of classes: `vocabulary`, or else the number of rows of the weight."""
        return self.weight_VD[: self.vocabulary].shape[0]

    @property
    def num_bytes(self) -> int:
        """Size in bytes of the first `num_classes` rows of the weight, in float32."""
        return self.num_classes * self.weight_VD.shape[1] * torch.float32.itemsize

    def logits(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        """Return logits_NV in float32 (in float64 for float64 hidden states).

        The logits are float32 for any dtype of the weights, also under autocast.

        Args:
            hidden_ND: Last hidden states of the rows, after the final norm.
        """
        return self.finish(self.raw(hidden_ND, Products.like(hidden_ND)))

    def prepared(self, hidden_ND: torch.Tensor) -> "Head":
        """Return a detached copy of the head with a converted weight.

        `logits` converts the weight to the dtype of the matrix product in every call.  In the copy, the weight is already
        converted, and has only its first `num_classes` rows.  Use the copy if `logits` is called often, with hidden states that
        have the dtype of `hidden_ND`.
        """
        storage = Products.like(hidden_ND).storage
        bias_V = None if self.bias_V is None else self.bias_V.detach()[: self.vocabulary]
        return replace(self, weight_VD=self.weight_VD.detach()[: self.vocabulary].to(storage), bias_V=bias_V)

    def raw(self, hidden_ND: torch.Tensor, products: Products) -> torch.Tensor:
        """Return the raw logits h W^T + b, which are not yet scaled and capped.

        Args:
            hidden_ND: Last hidden states of the rows.
            products: Computes the matrix product.
        """
        raw_NV = products(hidden_ND, self.weight_VD[: self.vocabulary].T)
        return raw_NV if self.bias_V is None else raw_NV.add_(self.bias_V[: self.vocabulary].to(raw_NV.dtype))

    def finish(self, raw_NV: torch.Tensor) -> torch.Tensor:
        """Return the logits: the result of `raw`, scaled and then bounded by `softcap`.

        Args:
            raw_NV: Raw logits, as `raw` returns them.
        """
        return finished(raw_NV, self.scale, self.softcap)


def finished(raw_NV: torch.Tensor, scale: float, softcap: float | None) -> torch.Tensor:
    """Return the logits: z = scale * raw_NV, then softcap * tanh(z / softcap).

    `raw_NV` is the result of `Head.raw`.  If `softcap` is None, the result is z.
    """
    logits_NV = raw_NV if scale == 1.0 else raw_NV * scale
    return logits_NV if softcap is None else softcap * torch.tanh(logits_NV / softcap)
