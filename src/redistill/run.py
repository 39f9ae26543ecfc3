"""From a config to a finished run folder: train, evaluate, report.  The Python API is this.

The run folder is the interface between the stages: each reads what the one before it wrote, and can be repeated alone.  The
same config in the same folder goes on where it stopped.
"""

import dataclasses
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from redistill import checkpoint, evaluation, files, tracking
from redistill.assembly import DataSets, Models, load_data, load_models, load_tests, shared_vocabulary
from redistill.config import DataConfig, Run, StudentConfig, encode_run
from redistill.contracts import Batch, Generation, GenerationRequest, Sampling
from redistill.data.tokenize import TokenizeConfig
from redistill.errors import CheckpointError, ConfigError, RedistillError
from redistill.evaluation import EvaluationConfig
from redistill.experiments.report import build_report
from redistill.guards import EarlyStopping, FiniteGuard
from redistill.models.generate import generate
from redistill.models.load import ModelConfig, head, load_model
from redistill.models.student import StudentModule
from redistill.policies import GoldBatches, Policy, PolicyTools, Revision
from redistill.spans.extract import load_extractor
from redistill.spans.mark import SpanMarker
from redistill.teachers import LocalTeacher
from redistill.training import Parts, TrainingState, parameter_groups, restore_checkpoint, train
from redistill.vocab_pass import Head

RUN_FILE = "run.json"


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """A finished run.

    Args:
        folder: The run folder.
        model: The student, a folder that transformers loads.
        scores: What scores.json holds: data set -> seed -> scores.
        report: The HTML page.
    """

    folder: Path
    model: Path
    scores: Mapping[str, Any]
    report: Path


def distill(config: Run, *, baselines: Sequence[Path] = (), command: str | None = None) -> RunResult:
    """Train, evaluate and report; a run that stands in `config.folder` already goes on where it stopped.

    Args:
        baselines: Folders of finished runs to compare with in the report.
        command: What to print under "repeat this run"; None takes the command line of this process.

    Raises:
        RedistillError: see the stages; nothing that was finished is lost.

    Example:
        >>> result = distill(load_config(Path("recipes/smollm2-dolly.yaml")))  # doctest: +SKIP
        >>> result.scores["dolly"]["seeds"]["10"]["rouge_l"]  # doctest: +SKIP
        22.8
    """
    train_student(config, command=command)
    scores = evaluate_run(config)
    report = build_report(config.folder, baselines)
    return RunResult(folder=config.folder, model=config.folder / "model", scores=scores, report=report)


def train_student(config: Run, *, command: str | None = None) -> Path:
    """Train the student of a run and write its best state to `<folder>/model`; returns that folder.

    Raises:
        ConfigError: the folder holds another run.
        DataError, ModelError, VocabularyError, OutputError: as their names say.
        TrainingError: too many updates in a row were not finite.
    """
    folder = config.folder
    if _claim(config):
        return folder / "model"
    accelerator = _accelerator(config)
    if config.training.batch_size % accelerator.num_processes:
        raise ConfigError(
            f"training.batch_size = {config.training.batch_size}: must be a multiple of the number of processes, "
            f"{accelerator.num_processes}"
        )
    teacher_source = _teacher_source(config)
    with (
        _folder_of_new_run(folder),
        _progress(config, accelerator) as progress,
    ):
        models = load_models(config, teacher_source)
        rejected = folder / "rejected.jsonl" if accelerator.is_main_process else None
        data = load_data(config.data, models.tokenizer, config.seed, rejected=rejected, say=progress.note)
        for note in models.notes:
            progress.note(f"note: {note}")
        bench = Bench(config, accelerator, models, data, progress)
        if accelerator.is_main_process:
            _write_run_file(bench, command, status="running")
        bench.evaluate_before()
        bench.train()
        if accelerator.is_main_process:
            bench.export()
            _write_run_file(bench, command, status="trained")
        accelerator.wait_for_everyone()
    return folder / "model"


class Bench:
    """The built parts of one run, on their device."""

    def __init__(
        self, config: Run, accelerator: Accelerator, models: Models, data: DataSets, progress: tracking.Progress
    ) -> None:
        self.config, self.accelerator, self.models, self.data, self.progress = config, accelerator, models, data, progress
        self.method = config.resolved_method
        device = accelerator.device
        self.teacher = (
            None if models.teacher is None else LocalTeacher(models.teacher, vocabulary=models.vocabulary, device=device)
        )
        self.divergence = self.method.objective.build_divergence(models.vocabulary, config.seed)
        self.student = StudentModule(models.student, vocabulary=models.vocabulary, divergence=self.divergence).to(device)
        self.spans = load_extractor(config.data.spans) if self.method.objective.uses_spans else None

    def train(self) -> None:
        """Run the loop from the newest valid checkpoint, or from the start."""
        parts = self._parts()
        found = checkpoint.load(parts.checkpoints)
        state = TrainingState()
        if found is not None:
            for line in found.skipped:
                self.progress.note(line)
            state = restore_checkpoint(parts, found)
            self.progress.note(f"resumed at step {state.step} of {self.config.training.updates}")
        if self.accelerator.is_main_process:
            parts.log.truncate_after(state.step)
            _truncate_revisions(self.config.folder / "revisions.jsonl", state.step)
        self.accelerator.wait_for_everyone()
        state = train(parts, self.config.training, self.config.optimiser, state)
        best = checkpoint.load_step(parts.checkpoints, state.best_step if state.best_step is not None else state.step)
        self.student.model.load_state_dict(best.tensors["model"])
        self.progress.note(f"best checkpoint: step {best.step}, validation ROUGE-L {state.best_score:.2f}")

    def evaluate_before(self) -> None:
        """Evaluate the untrained student, while it still is; a resumed run finds it done."""
        if "before" in self.config.evaluation.compare and self.data.tests:
            self.evaluate(self.models.student, "before", self.config.folder / "before")

    def evaluate(self, model: nn.Module, label: str, folder: Path) -> Mapping[str, Any]:
        """Scores of `model` on every test set, in an evaluation folder."""
        with self.accelerator.autocast():
            return evaluation.evaluate(
                model,
                self.models.tokenizer,
                self.data.tests,
                self.config.evaluation,
                self.config.data.tokens,
                folder,
                label=label,
                teacher=self.teacher,
                vocabulary=self.models.vocabulary,
                shard=(self.accelerator.process_index, self.accelerator.num_processes),
                gather=gather_object,
            )

    def export(self) -> None:
        """Write the student as a folder that transformers loads."""
        with files.new_folder(self.config.folder / "model") as folder:
            self.models.student.save_pretrained(folder)
            self.models.tokenizer.save_pretrained(folder)

    def generate(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> list[Generation]:
        """The current student's continuations (contracts.Generate)."""
        with self.accelerator.autocast():
            return generate(
                self.student.model,
                requests,
                sampling,
                seed=self.config.seed,
                end_ids=self.models.end_ids,
                pad_id=self.models.pad_id,
                batch_size=self.config.training.generation_batch_size,
                vocabulary=self.models.vocabulary,
            )

    @torch.no_grad()
    def student_rows(self, batch: Batch) -> tuple[torch.Tensor, Head]:
        """The current student's hidden states of a batch's rows, in evaluation mode."""
        self.student.eval()
        with self.accelerator.autocast():
            return self.student.rows(batch)

    def validate(self) -> dict[str, float]:
        """Scores that choose the best checkpoint: one sampled answer a prompt, and the reading of the gold one."""
        with self.accelerator.autocast():
            return evaluation.validation_scores(
                self.student.model,
                self.models.tokenizer,
                self.data.validation,
                self.data.validation_examples,
                self.config.data.tokens,
                seed=self.config.seed,
                batch_size=self.config.evaluation.batch_size,
                teacher=self.teacher,
                vocabulary=self.models.vocabulary,
                gather=gather_object,
                shard=(self.accelerator.process_index, self.accelerator.num_processes),
            )

    def _parts(self) -> Parts:
        optimiser = self.config.optimiser
        groups = parameter_groups(self.student, self.student.clip_network, optimiser)
        optimizer = torch.optim.AdamW(
            groups, lr=optimiser.learning_rate, betas=optimiser.betas, weight_decay=optimiser.weight_decay, fused=True
        )
        wrapped, optimizer = self.accelerator.prepare(self.student, optimizer)
        settings = self.config.training
        return Parts(
            accelerator=self.accelerator,
            student=wrapped,
            optimizer=optimizer,
            policy=self._policy(),
            objective=self.method.objective,
            divergence=self.divergence,
            teacher=self.teacher if self.method.objective.uses_sampled else None,
            validate=self.validate,
            guard=FiniteGuard(max_skips=settings.max_skips),
            early_stopping=EarlyStopping(patience=settings.patience),
            log=tracking.MetricsLog(self.config.folder / "metrics.jsonl"),
            progress=self.progress,
            checkpoints=self.config.folder / "checkpoints",
            pad_id=self.models.pad_id,
            seed=self.config.seed,
        )

    def _policy(self) -> Policy:
        settings = self.config.training
        tools = PolicyTools(
            generate=self.generate,
            student_rows=self.student_rows,
            teacher=self.teacher,
            end_ids=self.models.end_ids,
            pad_id=self.models.pad_id,
            response_tokens=self.config.data.tokens.response_tokens,
            score_batch_size=settings.generation_batch_size,
            seed=self.config.seed,
            device=self.accelerator.device,
            on_revision=self._log_revision,
        )
        gold = GoldBatches(
            self.data.train,
            batch_size=settings.batch_size,
            seed=self.config.seed,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
        )
        special = (*self.models.end_ids, *self.models.tokenizer.all_special_ids)
        marker = None if self.spans is None else SpanMarker(self.spans, self.models.tokenizer, special)
        return Policy(gold, self.method.policy.bind(tools), marker)

    def _log_revision(self, revision: Revision) -> None:
        """A correction as text, for revisions.jsonl: the main process's own, of the steps that are logged."""
        if not self.accelerator.is_main_process or revision.step % self.config.training.log_every:
            return
        before, after, at = revision.before, revision.after, revision.position

        def text(ids: Sequence[int]) -> str:
            return str(self.models.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

        line = {
            "step": revision.step + 1,
            "sample": revision.sample,
            "position": at,
            "kl": revision.kl,
            "prompt": text(before.prompt_ids),
            "kept": text(before.response_ids[:at]),
            "student_token": text(before.response_ids[at : at + 1]),
            "teacher_token": text(after.response_ids[at : at + 1]),
            "student_tail": text(before.response_ids[at + 1 :]),
            "new_tail": text(after.response_ids[at + 1 :]),
        }
        files.append_line(self.config.folder / "revisions.jsonl", line)


def evaluate_run(config: Run) -> Mapping[str, Any]:
    """Evaluate the trained student of a run folder, and its teacher where `evaluation.compare` asks for it.

    Returns:
        The student's scores, as in scores.json.

    Raises:
        CheckpointError: the run has no trained student yet, or its scores were made with other settings.
    """
    folder = config.folder
    if not (folder / "model" / "config.json").exists():
        raise CheckpointError(f"{folder}: has no trained student; run `redistill train` with the same recipe first")
    accelerator = _accelerator(config)
    source = _teacher_source(config)
    student = ModelConfig(model=str(folder / "model"))
    plan = [(student, "student", folder, source)]
    if source is not None and "teacher" in config.evaluation.compare:
        plan.append((source, "teacher", folder / "teacher", None))
    scores = {
        label: _evaluate(model, config.data, config.evaluation, target, label, teacher, accelerator)
        for model, label, target, teacher in plan
    }
    if accelerator.is_main_process:
        files.write_json(folder / RUN_FILE, files.read_json(folder / RUN_FILE) | {"status": "finished"})
    accelerator.wait_for_everyone()
    return scores["student"]


def evaluate_model(
    model: ModelConfig,
    tests: Mapping[str, str | None],
    evaluation_config: EvaluationConfig,
    tokens: TokenizeConfig,
    out: Path,
    *,
    teacher: ModelConfig | None = None,
) -> Mapping[str, Any]:
    """Score any Transformers model on any of the test sets; `out` becomes an evaluation folder.

    Args:
        tests: Task -> file, or None for the task's place on the hub.
        teacher: To measure KL and agreement on the gold answers with.

    Raises:
        ModelError, DataError, VocabularyError: as their names say.
        CheckpointError: `out` holds answers of another model or of other settings.
    """
    data = DataConfig(tests=dict(tests), tokens=tokens)
    name = Path(model.model).name or model.model
    return _evaluate(model, data, evaluation_config, files.make_folder(out), name, teacher, Accelerator())


def _evaluate(
    source: ModelConfig,
    data: DataConfig,
    config: EvaluationConfig,
    folder: Path,
    label: str,
    teacher_source: ModelConfig | None,
    accelerator: Accelerator,
) -> Mapping[str, Any]:
    """Load a model, and a teacher to compare it with on gold answers, and score it."""
    tests = load_tests(data, lambda line: None)
    model, tokenizer = load_model(source)
    size, teacher = head(model).num_classes, None
    if teacher_source is not None:
        teacher_model, teacher_tokenizer = load_model(teacher_source)
        size = shared_vocabulary(teacher_model, teacher_tokenizer, model, tokenizer).size
        teacher = LocalTeacher(teacher_model, vocabulary=size, device=accelerator.device)
    with accelerator.autocast():
        return evaluation.evaluate(
            model.to(accelerator.device),
            tokenizer,
            tests,
            config,
            data.tokens,
            folder,
            label=label,
            teacher=teacher,
            vocabulary=size,
            shard=(accelerator.process_index, accelerator.num_processes),
            gather=gather_object,
        )


def _claim(config: Run) -> bool:
    """Make the run folder or recognise it as this run's own; returns whether the student in it is trained already.

    Raises:
        ConfigError: it holds another run.
        OutputError: it cannot be written.
    """
    folder = config.folder
    if not (folder / RUN_FILE).exists():
        return False
    held = files.read_json(folder / RUN_FILE)
    mine, theirs = _flat(encode_run(config)), _flat(held.get("config", {}))
    different = sorted(name for name in mine.keys() | theirs.keys() if name != "out" and mine.get(name) != theirs.get(name))
    if different:
        name = different[0]
        raise ConfigError(
            f"{folder}: holds another run ({name} is {theirs.get(name)!r} there and {mine.get(name)!r} here"
            + (f", and {len(different) - 1} more fields differ" if len(different) > 1 else "")
            + "); choose another `out`, or remove the folder"
        )
    return held.get("status") in {"trained", "finished"} and (folder / "model" / "config.json").exists()


@contextmanager
def _folder_of_new_run(folder: Path) -> Iterator[None]:
    """The run folder, tried for writing; taken away again if the run fails before it has described itself."""
    existed = folder.exists()
    files.make_folder(folder)
    try:
        yield
    except RedistillError:
        if not existed and not (folder / RUN_FILE).exists() and not list(folder.glob("rejected*")):
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _progress(config: Run, accelerator: Accelerator) -> tracking.Progress:
    """The main process tells how far training is; the others are silent."""
    settings = config.training
    return tracking.Progress(settings.updates, log_every=settings.log_every, enabled=accelerator.is_main_process)


def _accelerator(config: Run) -> Accelerator:
    precision = "bf16" if config.training.precision == "bf16" else "no"
    return Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=precision)


def _teacher_source(config: Run) -> ModelConfig | None:
    """Where the teacher's weights are: what the config names, or the copy that was fine-tuned first (here, if need be)."""
    teacher = config.teacher
    if teacher is None:
        return None
    plain = ModelConfig(model=teacher.model, revision=teacher.revision, dtype=teacher.dtype)
    if teacher.finetune is None:
        return plain
    tuning = Run(
        name=f"{config.name}-teacher",
        method="sft",
        seed=config.seed,
        out=str(config.folder.with_name(f"{config.folder.name}-teacher")),
        student=StudentConfig(model=teacher.model, revision=teacher.revision),
        data=dataclasses.replace(config.data, tests={}),
        optimiser=dataclasses.replace(config.optimiser, learning_rate=teacher.finetune.learning_rate),
        training=dataclasses.replace(config.training, updates=teacher.finetune.updates),
    )
    return dataclasses.replace(plain, model=str(train_student(tuning)), revision=None)


def _write_run_file(bench: Bench, command: str | None, status: str) -> None:
    config = bench.config
    described = {
        "schema": 1,
        "name": config.name,
        "method": config.method,
        "status": status,
        "command": command or shlex.join(["redistill", *sys.argv[1:]]),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": tracking.commit(),
        "versions": tracking.versions(),
        "machine": tracking.machine(),
        "processes": bench.accelerator.num_processes,
        "config": encode_run(config),
        "data": dict(bench.data.manifest),
        "models": dict(bench.models.manifest),
        "spans": None if bench.spans is None else bench.spans.description,
    }
    files.write_json(config.folder / RUN_FILE, described)


def _truncate_revisions(path: Path, step: int) -> None:
    """Drop what was logged after the checkpoint that a run resumes from; those steps come again."""
    lines = files.read_lines(path)
    kept = [line for line in lines if line["step"] <= step]
    if len(kept) < len(lines):
        files.rewrite_lines(path, kept)


def _flat(tree: Any, path: str = "") -> dict[str, Any]:
    if isinstance(tree, dict):
        return {key: value for name, item in tree.items() for key, value in _flat(item, f"{path}.{name}".strip(".")).items()}
    return {path: tree}
