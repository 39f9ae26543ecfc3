"""Settings, options and values of other tools, and their equivalents in redistill.

The tools are TRL, transformers' Trainer, axolotl, LLaMA-Factory and lm-evaluation-harness. The command line imports this
module, so this module must not import modules that take long to import.
"""

import re
from collections.abc import Collection, Mapping, Sequence

SETTINGS: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(("lr", "learning_rate"), ("optimiser.learning_rate", "")),
    **dict.fromkeys(("warmup_steps", "num_warmup_steps"), ("optimiser.warmup_updates", "")),
    "warmup_ratio": ("optimiser.warmup_updates", ", a number of updates"),
    **dict.fromkeys(("lr_scheduler", "lr_scheduler_type"), ("optimiser.schedule", ", cosine or constant")),
    "weight_decay": ("optimiser.weight_decay", ""),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), ("optimiser.betas", ", a list of two numbers")),
    **dict.fromkeys(("max_grad_norm", "gradient_clipping"), ("optimiser.max_grad_norm", "")),
    **dict.fromkeys(("epochs", "num_epochs", "num_train_epochs"), ("training.updates", ", in the form '3 epochs'")),
    **dict.fromkeys(("max_steps", "steps", "num_steps"), ("training.updates", ", a number of updates")),
    **dict.fromkeys(
        ("gradient_accumulation_steps", "gradient_accumulation"),
        ("training.batch_size", " for the sequences of an update, and training.micro_batch_size for those of one pass"),
    ),
    **dict.fromkeys(
        ("per_device_train_batch_size", "per_device_batch_size", "micro_batch_size"),
        ("training.micro_batch_size", ", and training.batch_size for the sequences of an update over all processes"),
    ),
    **dict.fromkeys(("train_batch_size", "batch_size"), ("training.batch_size", ", the sequences of an update")),
    **dict.fromkeys(("per_device_eval_batch_size", "eval_batch_size"), ("evaluation.batch_size", "")),
    **dict.fromkeys(("bf16", "bfloat16", "mixed_precision"), ("training.precision", ", with the value bf16 or fp32")),
    **dict.fromkeys(("fp16", "float16"), ("training.precision", ", with the value bf16; fp16 is not supported")),
    **dict.fromkeys(
        ("eval_steps", "eval_strategy", "evaluation_strategy"), ("training.evaluate_every", ", in updates or epochs")
    ),
    **dict.fromkeys(("save_steps", "save_strategy"), ("training.save_every", ", in updates or epochs")),
    "save_total_limit": ("training.keep", ""),
    "logging_steps": ("training.log_every", ""),
    **dict.fromkeys(
        ("metric_for_best_model", "load_best_model_at_end"), ("training.choose_by", "; the best model is always kept")
    ),
    "early_stopping_patience": ("training.patience", ""),
    "torch_compile": ("training.compile", ""),
    **dict.fromkeys(("model_name_or_path", "base_model", "model_id", "student_model"), ("student.model", "")),
    **dict.fromkeys(("model_revision", "model_name_revision"), ("student.revision", "")),
    **dict.fromkeys(("teacher_model_name_or_path", "teacher_model"), ("teacher.model", "")),
    **dict.fromkeys(("torch_dtype", "model_dtype"), ("student.dtype", "")),
    **dict.fromkeys(("gradient_checkpointing",), ("student.gradient_checkpointing", "")),
    **dict.fromkeys(("use_peft", "use_lora", "finetuning_type", "peft_config"), ("student.lora", ", such as {rank: 8}")),
    **dict.fromkeys(("lora_r", "lora_rank"), ("student.lora.rank", "")),
    "lora_alpha": ("student.lora.alpha", ""),
    "lora_dropout": ("student.lora.dropout", ""),
    **dict.fromkeys(("lora_target", "lora_target_modules"), ("student.lora.targets", "")),
    **dict.fromkeys(("load_in_4bit", "load_in_8bit", "quantization_bit"), ("student.lora.quantise", ", nf4 or int8")),
    **dict.fromkeys(("dataset", "datasets", "dataset_name", "train_file"), ("data.train", ", a list of files or hub names")),
    **dict.fromkeys(
        ("dataset_config", "dataset_config_name", "dataset_split", "dataset_revision"),
        ("data.train", ", as [{path: owner/name, config: CONFIG, split: SPLIT, revision: REVISION}]"),
    ),
    **dict.fromkeys(
        ("column_mapping", "dataset_text_field", "prompt_column", "response_column"),
        ("data.columns", ", as {prompt: COLUMN, completion: COLUMN}"),
    ),
    **dict.fromkeys(("eval_dataset", "validation_file", "test_datasets"), ("data.validation", "")),
    "val_set_size": ("data.validation_rows", ", a number of rows"),
    "max_samples": ("data.max_train_rows", ""),
    **dict.fromkeys(
        ("max_length", "max_seq_length", "cutoff_len", "sequence_len"),
        ("data.tokens.prompt_tokens", " and data.tokens.response_tokens"),
    ),
    "max_prompt_length": ("data.tokens.prompt_tokens", ""),
    **dict.fromkeys(("max_new_tokens", "max_completion_length"), ("data.tokens.response_tokens", "")),
    "chat_template": ("data.tokens.template", ", with the value chat"),
    **dict.fromkeys(("chat_template_kwargs", "enable_thinking"), ("data.tokens.template_arguments", "")),
    **dict.fromkeys(("output_dir", "output_path"), ("out", ", or the option --out")),
    "run_name": ("name", ""),
    **dict.fromkeys(("optim", "optimizer_name"), ("", "remove it; the optimiser is AdamW")),
    "optimizer": ("optimiser", ", a section with learning_rate and others; the optimiser is AdamW"),
    "lmbda": ("", "use policy={kind: mixed, student_fraction: VALUE}"),
    "beta": (
        "",
        "use objective.divergence={kind: jensen_shannon, teacher_weight: VALUE}, or forward_kl for 0 and reverse_kl for 1",
    ),
    **dict.fromkeys(("packing", "sample_packing"), ("", "remove it; rows of similar length are read together")),
    "stage": ("method", ", such as sft or kd"),
    "resume_from_checkpoint": ("", "run the same command again; it resumes from the last checkpoint"),
    "deepspeed": ("placement", ", with the value sharded, and start the command with torchrun"),
    **dict.fromkeys(("fsdp", "fsdp_config"), ("placement", ", with the value sharded, and start the command with torchrun")),
    **dict.fromkeys(("report_to", "log_with"), ("tracking.to", ", a list such as [tensorboard]")),
    "wandb_project": ("tracking.project", ", with tracking.to=[wandb]"),
}
"""Maps a setting of another tool to a pair: the path of the setting in redistill, and a text that follows the path in messages.

If the path is "", the message has only the text.
"""

OPTIONS: Mapping[str, str] = {
    **dict.fromkeys(("tasks", "include_path"), "--data TASK=PATH"),
    **dict.fromkeys(("model_args", "pretrained"), "the model as the first argument, without 'pretrained='"),
    "output_path": "--out DIR",
    "batch_size": "--batch-size N",
    "gen_kwargs": "--temperature and --top-p",
    "num_fewshot": "prompts that contain the examples; few-shot examples are not inserted",
    "apply_chat_template": "--template chat",
}
"""Maps an option of lm-evaluation-harness to what replaces it in `redistill evaluate`."""

_VALUES = (
    ("bf16", "bfloat16", "bf16-mixed", "bf16-true", "fp16", "float16", "half"),
    ("fp32", "float32", "float", "32-true"),
    ("cosine", "linear"),
)
_OPTION = re.compile(r"--?([A-Za-z]\w*(?:[-_]\w+)*)(=.*)?", re.ASCII | re.DOTALL)


def setting_hint(name: str, known: Collection[str] = ()) -> str | None:
    """Return what to use in redistill instead of a setting of another tool.

    Args:
        name: The name in the other tool; case and hyphens are ignored.
        known: Names of the fields in the section where `name` was found. If the setting to use is one of these fields, the
            result does not name the section.

    Returns:
        A phrase that begins with a verb; None if no other tool uses the name.

    Example:
        >>> setting_hint("lr"), setting_hint("lr", ["learning_rate"]), setting_hint("nothing")
        ('use optimiser.learning_rate', 'use learning_rate', None)
    """
    found = SETTINGS.get(name.lower().replace("-", "_"))
    if found is None:
        return None
    path, text = found
    last = path.rpartition(".")[2]
    return f"use {last if last in known else path}{text}" if path else text


def value_hint(value: object, allowed: Sequence[object]) -> str:
    """Return the end of an error message for a value that other tools use.

    The text names the allowed value with the same meaning. The result is "" if there is no such value, or if no other tool
    uses `value`.

    Example:
        >>> value_hint("bfloat16", ["fp32", "bf16"]), value_hint("fp16", ["fp32", "bf16"]), value_hint("x", ["fp32"])
        ("; use 'bf16'", "; use 'bf16', since fp16 is not supported", '')
    """
    for group in _VALUES:
        here = [other for other in group if other in allowed]
        if value in group and here:
            is_half = value in ("fp16", "float16", "half")
            return f"; use '{here[0]}'" + (f", since {value} is not supported" if is_half else "")
    return ""


def option_hint(command: str, argument: str) -> str | None:
    """Return what to use instead of an option of another tool on the command line.

    Args:
        command: The command, such as "run".
        argument: The argument, such as "--learning_rate=1e-4".

    Returns:
        A phrase that begins with a verb; None if the argument is not such an option.

    Example:
        >>> option_hint("run", "--learning_rate")
        'use optimiser.learning_rate=VALUE, without --'
        >>> option_hint("evaluate", "--tasks")
        'use --data TASK=PATH'
        >>> option_hint("evaluate", "--batch_size"), option_hint("evaluate", "--batch-size")
        ('use --batch-size N', None)
    """
    match = _OPTION.fullmatch(argument)
    name = match[1].lower().replace("-", "_") if match else ""
    if command == "evaluate":
        is_own = match is not None and OPTIONS.get(name, "").startswith(f"--{match[1]} ")
        return f"use {OPTIONS[name]}" if name in OPTIONS and not is_own else None
    if command not in ("run", "train", "sweep", "config", "estimate", "doctor") or name not in SETTINGS:
        return None
    path, text = SETTINGS[name]
    return f"use {path}=VALUE{text}, without --" if path else text
