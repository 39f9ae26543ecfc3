"""How far is a student from its teacher on text that the student generates now?

For each run of a sweep, the trained student answers each validation prompt once, at temperature 1.  Both models read the
answers, and three means over the tokens are stored: KL(teacher || student), KL(student || teacher) and the student's entropy,
all in nats.  The seed of the answers is that of the run, so runs with the same training seed differ in their weights alone.
"""

import math
from pathlib import Path

import torch

from benchmarks.held_out import rollouts
from redistill.config.run import load_config
from redistill.models.load import ModelConfig, load_model
from redistill.policies import Scorer
from redistill.runs.opened import open_run
from redistill.storage import files

STATISTICS = ("forward_kl", "reverse_kl", "student_entropy")


@torch.no_grad()
def fresh_divergences(folder: Path) -> dict[str, float]:
    """The statistics of one run, and the number of tokens of which they are means."""
    with open_run(load_config(folder / "run.json")) as run:
        trained, _ = load_model(ModelConfig(model=str(folder / "model")))
        for parameter, value in zip(run.student.model.parameters(), trained.parameters(), strict=True):
            parameter.copy_(value)
        run.student.eval()
        place = {"pad_id": run.models.pad_id, "device": run.accelerator.device}
        scorer = Scorer(run.student.rows, run.teacher, batch_size=16, **place)
        with run.accelerator.autocast():
            found = scorer.statistics(rollouts(run), list(STATISTICS))
    values = {name: torch.cat(found[name]).double().tolist() for name in STATISTICS}
    return {"tokens": len(values["forward_kl"]), **{name: math.fsum(each) / len(each) for name, each in values.items()}}


def measure(sweep: Path, out: Path) -> None:
    """Measure every run of a sweep that is not in `out` yet."""
    measured = files.read_json(out) if out.exists() else {}
    listed = files.read_json(sweep / "sweep.json")["runs"]
    for folder in dict.fromkeys(entry["folder"] for entry in listed):
        if folder not in measured and (sweep / folder / "scores.json").is_file():
            measured[folder] = fresh_divergences(sweep / folder)
            files.write_json(out, measured)
            print(folder, measured[folder], flush=True)
