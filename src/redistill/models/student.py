"""The student as one module: its body, its head and the network of DAC-KL.

The body maps token ids to hidden states, and the head maps hidden states to logits. DAC-KL is a divergence over the classes
whose score lies in an interval. A small network predicts the interval.

A `Placement` distributes the parameters of this whole module over processes, so that all gradients are handled in the same way.
Training must call only the forward method of this module: if the parameters are sharded, a submodule that is called directly
has no full parameters. Inside ``Placement.unsharded``, any submodule may be called without gradients.
"""

import warnings
from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import nn

from redistill.contracts import Batch, TeacherTarget
from redistill.errors import first_line
from redistill.interfaces import CausalModel
from redistill.models.families import BodyCall, body, head
from redistill.storage.user_cache import check_compiler_cache
from redistill.vocab_pass import Compile, Head, Term, compiles, vocab_pass, with_phrases

Learned = tuple[torch.Tensor, dict[str, torch.Tensor]]
Rows = tuple[torch.Tensor, Head]


class StudentModule(nn.Module):
    """A language model and the trainable parts of the objective.

    Args:
        model: A causal language model of transformers.
        vocabulary: Number of classes that teacher and student share. They are the first rows of the head; all other rows are
            padding.
        divergence: The divergence of the objective. If it is a module with parameters, such as DAC-KL with its network, it is
            registered as a submodule, so that its parameters are trained.
        compile: "none" compiles nothing, "rows" compiles the terms of the objective, and "all" also compiles the body (the
            model without its LM head). "auto" means "rows" or "none", depending on the vocabulary size and the machine.

    Raises:
        ConfigError: `compile` is not "none", and the folder of torch's compiler cache cannot be created, or other users could
            change its files.
    """

    def __init__(self, model: CausalModel, *, vocabulary: int, divergence: object = None, compile: Compile = "none") -> None:
        super().__init__()
        self.model = model
        self.clip_network = divergence if isinstance(divergence, nn.Module) else None
        self._vocabulary, self._compile = vocabulary, compile
        if compile != "none":  # an error is raised here, before training
            check_compiler_cache()
        self._compiled_body = _compiled(body(model)) if compile == "all" else None

    @property
    def is_compiled(self) -> bool:
        """Whether functions are compiled in the first training passes.

        Compilation takes seconds to minutes.
        """
        device = next(self.parameters()).device
        return self._compile == "all" or compiles(self._compile, self._vocabulary, device)

    def forward(
        self,
        batch: Batch,
        target: TeacherTarget | None = None,
        terms: Sequence[Term] = (),
        *,
        mode: Literal["learn", "rows"] = "learn",
    ) -> Learned | Rows:
        """Compute the objective of a micro-batch, or the hidden states of its rows.

        A row is the prediction of one target (a token that the student is trained to predict).

        Args:
            batch: The micro-batch.
            target: Source of teacher logits; None if no term needs teacher logits.
            terms: The terms of the objective.
            mode: "learn" computes the objective, and "rows" only the hidden states.

        Returns:
            With "rows", the hidden states of the rows, [N, D], and the head. With "learn", the objective as a scalar, and
            the unweighted sum of each term by name. With "learn", the forward pass also adds the gradient of a trainable
            head's weight to ``weight.grad``. The caller must then run the backward pass with a gradient of 1.
        """
        hidden_BTD = (self._compiled_body or body(self.model))(batch.input_ids_BT, batch.attention_mask_BT)
        hidden_ND, student_head = hidden_BTD.flatten(0, 1)[batch.position_N], head(self.model, self._vocabulary)
        if mode == "rows":
            return hidden_ND, student_head
        compiled = compiles(self._compile, student_head.num_classes, hidden_ND.device)
        terms = with_phrases(terms, hidden_ND, student_head, target)
        return vocab_pass(hidden_ND, student_head, target, terms, compiled=compiled, into_grad=True)

    def rows(self, batch: Batch) -> Rows:
        """Return the hidden states of the rows of a batch, [N, D], and the head."""
        return cast(Rows, self(batch, mode="rows"))


def _compiled(plain: BodyCall) -> BodyCall:
    """Return a compiled version of `plain`, for sequences of all lengths.

    If compilation fails, the returned function issues a warning and calls `plain` itself.
    """
    from torch._dynamo.exc import TorchDynamoException  # here, since it takes a second to import

    fused, failed = torch.compile(plain, dynamic=True), False

    def hidden_states(input_ids_BT: torch.Tensor, attention_mask_BT: torch.Tensor) -> torch.Tensor:
        nonlocal failed
        if not failed:
            try:
                return fused(input_ids_BT, attention_mask_BT)
            except TorchDynamoException as error:
                failed = True
                fault = f"training.compile: the body cannot be compiled and runs uncompiled: {first_line(error)}"
                warnings.warn(fault, stacklevel=2)
        return plain(input_ids_BT, attention_mask_BT)

    return hidden_states
