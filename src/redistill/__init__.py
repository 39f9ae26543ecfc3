"""redistill: knowledge distillation of language models.

The module that defines a public name is imported when the name is first used. `import redistill.losses.divergences` therefore
imports torch, but not transformers.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_MODULES = {
    "distill": "redistill.runs.run",
    "train_student": "redistill.runs.run",
    "evaluate_run": "redistill.runs.run",
    "evaluate_model": "redistill.runs.run",
    "RunResult": "redistill.runs.run",
    "Run": "redistill.config.run",
    "TeacherConfig": "redistill.config.sections",
    "StudentConfig": "redistill.config.sections",
    "DataConfig": "redistill.config.sections",
    "load_config": "redistill.config.run",
    "TrainingConfig": "redistill.training.schedule",
    "OptimiserConfig": "redistill.training.optimiser",
    "EvaluationConfig": "redistill.evaluation.scores",
    "InitialiseConfig": "redistill.models.initialise",
    "TokenizeConfig": "redistill.data.tokenize",
    "Objective": "redistill.training.objective",
    "DacKLConfig": "redistill.losses.dac_kl",
    "LoraConfig": "redistill.models.lora",
    "FinetuneConfig": "redistill.config.sections",
    "ServedTeacherConfig": "redistill.teachers.served",
    "allow_hosts": "redistill.servers.address",
    "RedistillError": "redistill.errors",
}

__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'redistill' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
