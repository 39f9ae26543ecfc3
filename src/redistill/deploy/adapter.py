"""Export of the LoRA adapters of a student, in the format of PEFT."""

from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file, save_file

from redistill.config.run import load_config
from redistill.deploy.source import Source
from redistill.errors import CheckpointError, ModelError
from redistill.models.adapters import Adapter, find_adapter
from redistill.models.load import load_model, load_tokenizer
from redistill.models.lora import add_lora, load_trainable_state, save_student
from redistill.models.reading import reading
from redistill.models.snapshots import ADAPTER_WEIGHTS
from redistill.runs.folder import RUN_FILE
from redistill.runs.stages import student_source
from redistill.storage.hub import is_local
from redistill.training import checkpoint


def write_adapter(source: Source, folder: Path, allow_code: Sequence[str] = ()) -> list[str]:
    """Write the adapters of a student and its tokenizer to a folder.

    A run with `student.lora={export: merged}` has merged its adapters into the student. The adapters are then read from the
    checkpoint with the best validation score.

    Args:
        source: The student.
        folder: The folder, which must exist.
        allow_code: Modules that may be imported for external components of the run's recipe.

    Returns:
        Notes for the user.

    Raises:
        ModelError: the student has no adapters, or the files of its adapters are invalid.
        CheckpointError: the adapters are merged, and the checkpoints of the run were deleted.
    """
    found = None if source.model.endswith(".gguf") else find_adapter(source.model, None)
    base = _write_files(source, found, folder) if found is not None else _from_checkpoint(source, folder, allow_code)
    if is_local(base) or Path(base).is_dir():
        return [f"adapter_config.json names the base model by a path, {base}; change the path on another machine"]
    return []


def _write_files(source: Source, adapter: Adapter, folder: Path) -> str:
    """Copy an adapter to `folder`, and return the name of its base model."""
    import peft  # takes a second

    settings = peft.LoraConfig(
        **adapter.settings,
        task_type="CAUSAL_LM",
        inference_mode=True,
        base_model_name_or_path=adapter.base,
        revision=adapter.revision,
    )
    settings.save_pretrained(folder)
    with reading(f"{adapter.name}: {ADAPTER_WEIGHTS}", "save the adapter again"):
        weights = load_file(adapter.weights)
    save_file(weights, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    load_tokenizer(source.config).save_pretrained(folder)
    return adapter.base


def _from_checkpoint(source: Source, folder: Path, allow_code: Sequence[str]) -> str:
    """Write the adapters of a run's best checkpoint; return their base model's name."""
    student = None if source.run is None else student_source(load_config(source.run / RUN_FILE, (), allow_code))
    if source.run is None or student is None or student.lora is None:
        raise ModelError(f"{source.name}: has no LoRA adapters; set student.lora in the recipe, or use --to transformers")
    checkpoints = source.run / "checkpoints"
    newest = checkpoint.load(checkpoints)
    step = None if newest is None else newest.state.get("training", {}).get("best_step")
    if not isinstance(step, int):
        raise CheckpointError(
            f"{source.name}: the adapters are merged into the student, and {checkpoints} has no checkpoint; use "
            "--to transformers, or train with student.lora={export: adapter}"
        )
    model, tokenizer = load_model(student, student.lora.quantise)
    base = model.name_or_path
    model = add_lora(model, student.lora, seed=0)  # the adapters are replaced by those of the checkpoint
    load_trainable_state(model, checkpoint.load_step(checkpoints, step).tensors["model"])
    save_student(model, tokenizer, folder, "adapter")
    return base
