"""The workbench of one run: models, data, teacher and student on their device, and what the loop asks of them.

Longer than other files, since all that a run is built of comes together here.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs, gather_object
from torch import nn

from redistill.config.methods import method
from redistill.config.run import Run
from redistill.contracts import Batch, Generation, GenerationRequest, Sampling, TokenSequence
from redistill.data.corpus import load_corpus
from redistill.data.spans.extract import load_extractor
from redistill.data.spans.mark import SpanMarker
from redistill.errors import ConfigError
from redistill.evaluation import scores as evaluation
from redistill.generation.generate import generate
from redistill.generation.prefix import PrefixMemory, PrefixReader
from redistill.models.families import head
from redistill.models.lora import load_trainable_state, save_student
from redistill.models.student import StudentModule
from redistill.policies import Adaptive, GoldBatches, Policy, PolicyTools, Revision, Shuffled
from redistill.policies.legacy import legacy_sequence
from redistill.policies.revised import revises
from redistill.processes import signals
from redistill.processes import watch as ranks
from redistill.runs.load import DataSets, Models, load_data, load_models
from redistill.storage import files
from redistill.teachers.local import LocalTeacher
from redistill.training import checkpoint, tracking
from redistill.training.guards import CollapseMonitor, EarlyStopping, Event, Halving, UpdateGuard
from redistill.training.loop import Parts, TrainingState, restore_checkpoint, train
from redistill.training.optimiser import parameter_groups
from redistill.vocab_pass import Head

MAX_CORPUS_BLOCKS = 200_000
"""Text beyond this is not read: 100 million tokens at 512 a block, 400 MB in every process."""
MEETING = timedelta(hours=2)
"""So long may one process wait for another that works; one that no longer lives is found by `redistill.processes.watch`."""


@contextmanager
def open_bench(config: Run) -> Iterator["Bench"]:
    """Everything of a run loaded and on its device, with progress on the screen while it is open.

    Raises:
        ConfigError, DataError, ModelError, VocabularyError: as their names say.
        Interrupted: a signal has arrived, here or at another process.
    """
    accelerator = make_accelerator(config.training.precision)
    if config.training.batch_size % accelerator.num_processes:
        raise ConfigError(
            f"training.batch_size = {config.training.batch_size}: must be a multiple of the number of processes, "
            f"{accelerator.num_processes}"
        )
    settings = config.training
    is_main = accelerator.is_main_process
    with ranks.watched(), tracking.Progress(log_every=settings.log_every, enabled=is_main) as progress:
        with signals.handled(at_once=True):
            models = load_models(config)
            rejected = config.folder / "rejected.jsonl" if is_main else None
            data = load_data(config.data, models.tokenizer, config.seed, rejected=rejected, say=progress.note)
            for note in (*models.notes, *_notes(config)):
                progress.note(f"note: {note}")
            bench = Bench(config, accelerator, models, data, progress)
        signals.gather([])  # one that left above is missed here
        progress.expect(bench.schedule.updates)
        yield bench


class Bench:
    """The built parts of one run, on their device."""

    def __init__(
        self, config: Run, accelerator: Accelerator, models: Models, data: DataSets, progress: tracking.Progress
    ) -> None:
        self.config, self.accelerator, self.models, self.data, self.progress = config, accelerator, models, data, progress
        self.method = config.resolved_method
        self.schedule = config.training.schedule(len(data.train))
        self.meter = tracking.Meter()
        self.log = tracking.MetricsLog(config.folder / "metrics.jsonl")
        self.texts_at_once = Halving("training.generation_batch_size", config.training.generation_batch_size)
        self.corpus = self._read_corpus()
        device = accelerator.device
        self.teacher = (
            None if models.teacher is None else LocalTeacher(models.teacher, vocabulary=models.vocabulary, device=device)
        )
        if self.teacher is not None:
            self.method.objective.check_teacher(self.teacher.capabilities)
        self.divergence = self.method.objective.build_divergence(models.vocabulary, config.seed)
        self.student = StudentModule(
            models.student, vocabulary=models.vocabulary, divergence=self.divergence, compile=config.training.compile
        ).to(device)
        self._reader = PrefixReader(models.student)
        self._memory: PrefixMemory | None = None
        self.spans = load_extractor(config.data.spans) if self.method.objective.uses_spans else None

    def train(self) -> TrainingState:
        """Run the loop from the newest valid checkpoint, or from the start; leaves the student at its best."""
        parts = self.parts()
        found = checkpoint.load(parts.checkpoints)
        state = TrainingState()
        if found is not None:
            for line in found.skipped:
                self.progress.note(line)
            state = restore_checkpoint(parts, found)
            self.progress.note(f"resumed at step {state.step} of {self.schedule.updates}")
        if self.accelerator.is_main_process:
            logged = -1 if found is None else state.step  # the validation before the first update is logged at step 0
            parts.log.truncate_after(logged)
            truncate_revisions(self.config.folder / "revisions.jsonl", state.step)
        self.accelerator.wait_for_everyone()
        state = train(parts, self.config.training, self.config.optimiser, state)
        assert state.best_step is not None, "the last update is always validated"
        best = checkpoint.load_step(parts.checkpoints, state.best_step)
        load_trainable_state(self.student.model, best.tensors["model"])
        self.progress.note(f"best checkpoint: step {best.step}, validation {_named_score(self.config, state)}")
        return state

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
                metrics=self.config.test_metrics,
                progress=tracking.AnswerProgress(label, self.progress.note),
                teacher=self.teacher,
                vocabulary=self.models.vocabulary,
                shard=(self.accelerator.process_index, self.accelerator.num_processes),
                gather=signals.gather,
            )

    def export(self) -> None:
        """Write the student as a folder that transformers loads."""
        lora = self.config.student.lora
        with files.new_folder(self.config.folder / "model") as folder:
            save_student(self.models.student, self.models.tokenizer, folder, "merged" if lora is None else lora.export)

    def generate(
        self, requests: Sequence[GenerationRequest], sampling: Sampling, teacher_share: float = 0.0
    ) -> list[Generation]:
        """The current student's continuations, or its mixture's with the teacher (contracts.Generate, GenerateMixture)."""
        mixture = {"teacher": self.models.teacher, "teacher_share": teacher_share} if teacher_share else {}
        return self._written_by(self.student.model, requests, sampling, memory=self._memory, **mixture)

    def generate_teacher(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> list[Generation]:
        """The teacher's continuations (contracts.Generate)."""
        assert self.models.teacher is not None
        return self._written_by(self.models.teacher, requests, sampling)

    def _written_by(
        self, model: nn.Module, requests: Sequence[GenerationRequest], sampling: Sampling, **more: Any
    ) -> list[Generation]:
        with self.accelerator.autocast():
            # Begun anew with fewer at once where memory runs out: what is written does not depend on that.
            written = self.texts_at_once.repeat(
                lambda size: generate(
                    model,
                    requests,
                    sampling,
                    seed=self.config.seed,
                    end_ids=self.models.end_ids,
                    pad_id=self.models.pad_id,
                    batch_size=size,
                    vocabulary=self.models.vocabulary,
                    **more,
                )
            )
        self.meter.add(sum(len(generation.token_ids) for generation in written))
        return written

    @torch.no_grad()
    def student_rows(self, batch: Batch) -> tuple[torch.Tensor, Head]:
        """The current student's hidden states of a batch's rows, in evaluation mode."""
        self.student.eval()
        with self.accelerator.autocast():
            hidden_ND = self._reader.rows(
                batch.input_ids_BT, batch.attention_mask_BT, batch.position_N, self._memory, remember=self._memory is not None
            )
        return hidden_ND, head(self.student.model, self.models.vocabulary)

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        """While sequences are drawn that are read again, both models remember what they have read of them."""
        if self.teacher is None or not revises(self.method.policy):
            yield
        else:
            with self.teacher.remembering():
                self._memory = PrefixMemory()
                try:
                    yield
                finally:
                    self._memory = None

    def validate(self) -> dict[str, float]:
        """Scores that choose the best checkpoint: one sampled answer a prompt, and the reading of the gold one."""
        if self.teacher is not None:
            self.teacher.forget()  # a run that is resumed here remembers nothing either, and rounding would tell them apart
        with self.accelerator.autocast():
            return evaluation.validation_scores(
                self.student.model,
                self.models.tokenizer,
                self.data.validation,
                self.data.validation_examples,
                self.config.data.tokens,
                metrics=self.config.validation_metrics,
                seed=self.config.seed,
                batch_size=self.config.evaluation.batch_size,
                teacher=self.teacher,
                vocabulary=self.models.vocabulary,
                gather=signals.gather,
                shard=(self.accelerator.process_index, self.accelerator.num_processes),
            )

    def parts(self) -> Parts:
        """What the loop is handed."""
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
            teacher=self.teacher if self.method.objective.uses_teacher else None,
            validate=self.validate,
            metrics=self.config.validation_metrics,
            teacher_faults=(lambda: 0) if self.teacher is None else self.teacher.take_faults,
            guard=UpdateGuard(
                self.config.guards,
                folder=self.config.folder,
                tell=self._tell,
                gather=gather_object,
                is_main=self.accelerator.is_main_process,
                record={example.sample: example.record.record_id for example in self.data.train}.__getitem__,
            ),
            collapse=CollapseMonitor(self.config.guards, self._tell),
            memory=(Halving("training.micro_batch_size", settings.micro_batch_size), self.texts_at_once),
            tell=self._tell,
            early_stopping=EarlyStopping(patience=settings.patience),
            log=self.log,
            progress=self.progress,
            meter=self.meter,
            schedule=self.schedule,
            checkpoints=self.config.folder / "checkpoints",
            pad_id=self.models.pad_id,
            end_ids=self.models.end_ids,
            seed=self.config.seed,
        )

    def _tell(self, event: Event) -> None:
        """An event of a guard, on the screen and in metrics.jsonl; all processes hear of it, and the main one tells."""
        if self.accelerator.is_main_process:
            self.log.write(event.line())
            self.progress.note(event.text)

    def gold(self) -> GoldBatches:
        """The training set in its order, this process's share of each batch."""
        return GoldBatches(
            self.data.train,
            batch_size=self.config.training.batch_size,
            seed=self.config.seed,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
        )

    def _policy(self) -> Policy:
        settings, has_teacher, gold = self.config.training, self.models.teacher is not None, self.gold()
        tools = PolicyTools(
            generate=self.generate,
            generate_teacher=self.generate_teacher if has_teacher else None,
            generate_mixture=self.generate if has_teacher else None,
            student_rows=self.student_rows,
            teacher=self.teacher,
            gold=gold,
            gather=signals.gather,
            updates=self.schedule.updates,
            end_ids=self.models.end_ids,
            pad_id=self.models.pad_id,
            response_tokens=self.config.data.tokens.response_tokens,
            score_batch_size=settings.generation_batch_size,
            seed=self.config.seed,
            device=self.accelerator.device,
            folder=self.config.folder,
            is_main=self.accelerator.is_main_process,
            on_revision=self._log_revision,
        )
        special = (*self.models.end_ids, *self.models.tokenizer.all_special_ids)
        marker = None if self.spans is None else SpanMarker(self.spans, self.models.tokenizer, special)
        rewrite = None if self.config.compat is None else partial(legacy_sequence, end_id=self.models.end_ids[0])
        source, corpus = self.method.policy.bind(tools), self._corpus_batches()
        return Policy(gold, source, marker, corpus=corpus, rewrite=rewrite, drawing=self._drawing)

    def _read_corpus(self) -> Sequence[TokenSequence]:
        """Blocks of plain text for the pre-training term: no more than the run reads, or memory should hold."""
        sources, tokens = self.config.data.corpus, self.config.data.tokens
        wanted = self.method.objective.pretraining is not None
        if wanted != bool(sources):
            why = "no data.corpus" if wanted else f"method {self.config.method} does not read data.corpus"
            self.progress.note(f"note: {why}; there is no pre-training term")
        if not (wanted and sources):
            return ()
        return load_corpus(
            sources,
            self.models.tokenizer,
            block_tokens=tokens.prompt_tokens + tokens.response_tokens,
            max_blocks=min(self.schedule.updates * self.config.training.batch_size, MAX_CORPUS_BLOCKS),
        )

    def _corpus_batches(self) -> Shuffled[TokenSequence] | None:
        if not self.corpus:
            return None
        return Shuffled(
            self.corpus,
            batch_size=self.config.training.batch_size,
            seed=self.config.seed,
            purpose="corpus",
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
        )

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


def _notes(config: Run) -> Iterator[str]:
    """What of a recipe may not be what its author expects, though nothing is wrong with it."""
    if method(config.method).start == "finetuned" and config.student.start == "method" and config.student.finetune is None:
        yield f"{config.method} usually starts from a fine-tuned student; student.finetune says how, and is not given"
    for name, usual in method(config.method).optimiser.items():
        if (value := getattr(config.optimiser, name)) != usual:
            yield f"optimiser.{name} is {value}, by the recipe; the method's own is {usual}"
    policy = config.resolved_method.policy
    if isinstance(policy, Adaptive) and policy.threshold == 0 and not config.training.evaluate_every:
        yield "adaptive draws student text only after a validation loss has risen, and training.evaluate_every is 0"


def _named_score(config: Run, state: TrainingState) -> str:
    assert state.best_score is not None
    for metric in config.validation_metrics:
        if metric.name == config.training.choose_by:
            return f"{metric.title} {metric.shown(metric.goodness(state.best_score))}"
    return f"cross entropy {-state.best_score:.3f}"


def make_accelerator(precision: Literal["fp32", "bf16"]) -> Accelerator:
    """On the GPU where there is one; "bf16" computes under autocast, all else without.

    Accelerate keeps its state for the whole process: a second run there would inherit the first one's precision, or be refused
    with another.  So that state is dropped here, and the process group, which is kept apart from it, stays.
    """
    AcceleratorState._reset_state(reset_partial_state=False)
    return Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision="no" if precision == "fp32" else precision,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=MEETING)],
    )


def truncate_revisions(path: Path, step: int) -> None:
    """Drop what was logged after the checkpoint that a run resumes from; those steps come again."""
    lines = files.read_lines(path)
    kept = [line for line in lines if line["step"] <= step]
    if len(kept) < len(lines):
        files.rewrite_lines(path, kept)
