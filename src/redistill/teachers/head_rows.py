"""Teacher logits from hidden states, for slices of rows."""

import torch

from redistill.contracts import TeacherTarget
from redistill.vocab_pass.head import Head, Products


class HeadRows:
    """Computes teacher logits from hidden states, and counts rows that are not finite.

    Args:
        head: The head of the teacher, on `device`.
        device: Device of the hidden states.

    Example:
        >>> rows = HeadRows(Head(torch.eye(3)), "cpu")
        >>> rows.target(torch.tensor([[1.0, 0.0, 0.0], [float("nan"), 0.0, 0.0]]))(slice(0, 2)).shape, int(rows.faults())
        (torch.Size([2, 3]), 1)
    """

    def __init__(self, head: Head, device: torch.device | str) -> None:
        self.head = head
        self._faults = torch.zeros((), dtype=torch.long, device=device)

    def target(self, hidden_NE: torch.Tensor) -> TeacherTarget:
        """Return the function that computes the logits of a slice of rows.

        Args:
            hidden_NE: The last hidden states of the teacher, in the dtype in which the teacher computes them.
        """
        # The precision is fixed here: `logits` may be called inside or outside autocast, and p must be the same in both cases.
        products, classifier = Products.like(hidden_NE), self.head.prepared(hidden_NE)

        @torch.no_grad()
        def logits(rows: slice) -> torch.Tensor:
            logits_NV = classifier.finish(classifier.raw(hidden_NE[rows], products))
            # The maximum is not finite if a row has NaN or +inf, or only -inf.  Its cost is small compared with the product.
            self._faults += (~logits_NV.amax(dim=-1).isfinite()).sum()
            return logits_NV

        return logits

    def faults(self) -> torch.Tensor:
        """Return how many rows had non-finite logits since the last call of `faults`.

        The loss of such rows is NaN.  The number is an int64 tensor without dimensions on the device, so that the host need not
        wait for it.
        """
        faults = self._faults.clone()
        self._faults.zero_()
        return faults
