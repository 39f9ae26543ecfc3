"""The student as one module: body, head and the clip network, so that one wrapper sees every gradient.

Accelerate wraps this and nothing else, and in training only its forward is called: a body called past the wrapper would leave
gradients unreduced between processes.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from redistill.contracts import Batch, TeacherTarget
from redistill.models.families import BodyCall, body, head
from redistill.vocab_pass import Compile, Head, Term, compiles, vocab_pass


class StudentModule(nn.Module):
    """A language model and what learns beside it.

    Args:
        model: A causal language model of transformers.
        vocabulary: Classes that teacher and student share; rows beyond them are padding.
        divergence: The objective's divergence; kept as a submodule where it has parameters (DAC-KL's network).
        compile: Whether the terms are compiled, and with "all" the body as training reads it; "auto" decides by vocabulary
            and machine.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        vocabulary: int,
        divergence: object = None,
        compile: Compile = "none",
    ) -> None:
        super().__init__()
        self.model: Any = model  # a transformers model, which torch's types know nothing of
        self.clip_network = divergence if isinstance(divergence, nn.Module) else None
        self._vocabulary, self._compile = vocabulary, compile
        self._compiled_body = _compiled(body(model)) if compile == "all" else None

    def forward(
        self, batch: Batch, target: TeacherTarget | None, terms: Sequence[Term]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The objective of a micro-batch, with its gradients ready, and each term's plain sum.

        The gradient of a head's weight that learns is in its `grad` already: a backward from 1 must follow.
        """
        hidden_ND, student_head = self.rows(batch)
        compiled = compiles(self._compile, student_head.num_classes, hidden_ND.device)
        return vocab_pass(hidden_ND, student_head, target, terms, compiled=compiled, into_grad=True)

    def rows(self, batch: Batch) -> tuple[torch.Tensor, Head]:
        """The hidden states of the batch's supervised rows, [N, D], and the head that reads them."""
        read = self._compiled_body or body(self.model)
        hidden_BTD = read(batch.input_ids_BT, batch.attention_mask_BT)
        return hidden_BTD.flatten(0, 1)[batch.position_N], head(self.model, self._vocabulary)


def _compiled(plain: BodyCall) -> BodyCall:
    """The same call, compiled once for all lengths; as it is, with one warning, where that cannot be done."""
    from torch._dynamo.exc import TorchDynamoException  # here, since it takes a second to import

    fused, failed = torch.compile(plain, dynamic=True), False

    def hidden_states(input_ids_BT: torch.Tensor, attention_mask_BT: torch.Tensor) -> torch.Tensor:
        nonlocal failed
        if not failed:
            try:
                return fused(input_ids_BT, attention_mask_BT)
            except TorchDynamoException as error:
                failed = True
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                warnings.warn(f"training.compile: this body cannot be compiled and runs without: {reason}", stacklevel=2)
        return plain(input_ids_BT, attention_mask_BT)

    return hidden_states
