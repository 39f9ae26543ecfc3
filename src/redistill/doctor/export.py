"""The comparison of an exported student with the student in memory."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from redistill.contracts import Example
from redistill.doctor.findings import NotExamined
from redistill.errors import RedistillError
from redistill.interfaces import Tokenizer
from redistill.models.families import eval_mode
from redistill.models.load import ModelConfig, load_model, parameter_bytes
from redistill.models.lora import save_student
from redistill.randomness import torch_seed
from redistill.runs.opened import OpenRun
from redistill.runs.templates import exported_tokenizer
from redistill.storage import files

CHANGE = 0.05
"""Standard deviation of the noise that is added to a parameter in place of training.

The value is a fraction of the root mean square of the parameter.
"""
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 3e-2}
"""Largest allowed difference of logits, as a fraction of the largest logit, for each dtype of the weights."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The result of exporting a student and loading the exported model.

    Before the export, noise is added to the student's parameters (see `export`).

    Args:
        tokenizer: The tokenizer of the exported model; the student's tokenizer if the export failed.
        difference: Largest difference of the logits of the exported model and of the student, divided by the largest logit.
        change: Largest difference of the student's logits with and without the noise, divided by the largest logit.
        tolerance: Largest value of `difference` that rounding can cause.
        error: Message of the error that stopped the export; "" if the export succeeded.
    """

    tokenizer: Tokenizer
    difference: float
    change: float
    tolerance: float
    error: str = ""


def export(opened: OpenRun, example: Example) -> Exported:
    """Add noise to the student's parameters, export the student, and load the result.

    The noise simulates training. It shows whether the export uses the current parameters instead of the original ones. Only
    trainable parameters are changed, in place, and they are not restored. The student is exported to a temporary folder, which
    is deleted.

    Raises:
        NotExamined: the disk has too little free space for the exported student.
    """
    model, tokenizer, source = opened.models.student, opened.models.tokenizer, opened.config.student
    before = logits(model, example)
    perturb(model, opened.config.seed)
    trained = logits(model, example)
    largest = float(trained.abs().max()) or 1.0
    dtype = torch.bfloat16 if source.dtype == "bfloat16" else torch.float32
    is_quantised = source.lora is not None and source.lora.quantise != "none"
    tolerance = max(TOLERANCES.values()) if is_quantised else TOLERANCES[dtype]
    change = float((trained - before).abs().max()) / largest
    with tempfile.TemporaryDirectory() as folder:
        if files.disk.free_bytes(Path(folder)) < 2 * parameter_bytes(model):
            raise NotExamined(f"there is too little space in {folder} for the exported student")
        try:
            mine = exported_tokenizer(tokenizer, opened.data.templates)
            save_student(model, mine, Path(folder), "merged" if source.lora is None else source.lora.export)
            again, read = load_model(ModelConfig(model=folder, dtype="bfloat16" if dtype == torch.bfloat16 else "float32"))
        except RedistillError as error:
            return Exported(tokenizer=tokenizer, difference=0.0, change=change, tolerance=tolerance, error=str(error))
        found = logits(again.to(opened.accelerator.device), example)
    return Exported(
        tokenizer=read, difference=float((found - trained).abs().max()) / largest, change=change, tolerance=tolerance
    )


@torch.no_grad()
def logits(model: nn.Module, example: Example) -> torch.Tensor:
    """Return a model's logits for one example, computed in eval mode.

    The result is a float32 tensor on the CPU. Its shape is (T, V) for the T tokens of the example and V classes.
    """
    device = next(model.parameters()).device
    ids_BT = torch.tensor([example.token_ids], device=device)
    with eval_mode(model):
        found: torch.Tensor = model(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT), use_cache=False).logits
    return found[0].float().cpu()


@torch.no_grad()
def perturb(model: nn.Module, seed: int) -> None:
    """Add Gaussian noise to all trainable parameters of a model, in place.

    The standard deviation of the noise is 5 % (`CHANGE`) of the root mean square of the parameter tensor. It is 0.05 for a
    tensor of zeros.
    """
    for index, parameter in enumerate(model.parameters()):
        if parameter.requires_grad:
            generator = torch.Generator().manual_seed(torch_seed(seed, "doctor", index))
            size = float(parameter.detach().float().square().mean().sqrt()) or 1.0
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_((CHANGE * size * noise).to(parameter))
