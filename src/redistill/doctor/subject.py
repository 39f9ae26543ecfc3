"""What the checks examine: a sample of the data, and the models.

The models are those of a run of one update.  They are loaded once, and nothing is written but to a temporary folder.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from redistill.config.run import Run
from redistill.config.sections import TeacherConfig
from redistill.contracts import Batch, Draw, Example, TokenSequence, items_of
from redistill.data.check import SourceCheck, check_data
from redistill.data.reader import survey_records
from redistill.data.tokenize import TokenizeReport, tokenize_training
from redistill.doctor.export import Exported, export
from redistill.doctor.findings import NotExamined
from redistill.doctor.gradient import Measured, measure
from redistill.doctor.reading import Reading, read_gold
from redistill.errors import NotFiniteError, RedistillError, VocabularyError, WeightsError
from redistill.interfaces import CausalModel, Tokenizer
from redistill.models.load import load_tokenizer
from redistill.policies import Adaptive, Buffered, Fixed, Mixed, PolicyConfig, Revised, Rollouts, TeacherGenerated
from redistill.records import Record
from redistill.runs.build import build_evaluator, build_parts, build_policy
from redistill.runs.folder import has_model
from redistill.runs.load import DataSets, load_tests
from redistill.runs.models import load_models
from redistill.runs.opened import OpenRun, assemble, make_accelerator
from redistill.runs.stages import stages, student_source, teacher_source
from redistill.training.loop import cut
from redistill.training.parts import Parts
from redistill.training.progress import Progress

SAMPLE_ROWS = 256
"""Rows of training data, and of validation and test data, that are tokenised."""
GOLD_ROWS, UPDATE_ROWS, RESPONSE_TOKENS = 6, 3, 32
"""Rows that both models read, rows of an update, and the limit of their answers in tokens."""

Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Texts:
    """A sample of the recipe's data, tokenised as a run does it.

    Args:
        records: Training rows, spread evenly over all sources.
        prompts: Rows of the validation and test sets.
        examples: The tokenised `records`, without those that `report` names.
        report: The rows that training leaves out.
        sources: The result of `check_data` for each source.
        num_examples: Of the whole training set, before rows are left out.
    """

    records: Sequence[Record]
    prompts: Sequence[Record]
    examples: Sequence[Example]
    report: TokenizeReport
    sources: Sequence[SourceCheck]
    num_examples: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Loaded:
    """The models of a recipe on their device, and the parts of a run of one update.

    Args:
        opened: The run, with `GOLD_ROWS` training examples.
        parts: Parts of the training loop; None if the student has no trainable parameter.
    """

    opened: OpenRun
    parts: Parts | None

    @property
    def student(self) -> CausalModel:
        """The student's language model, with its adapters."""
        return self.opened.models.student

    @property
    def learning(self) -> Parts:
        """`parts`; raises NotExamined without trainable parameters."""
        if self.parts is None:
            raise NotExamined("the student has no trainable parameter")
        return self.parts

    @cached_property
    def draw(self) -> Draw:
        """The sequences of the first update, as the recipe's policy draws them."""
        self.opened.student.eval()
        self.opened.engine.sync(self.student, 0)
        return self.learning.policy.draw(0)

    @cached_property
    def gold_draw(self) -> Draw:
        """Gold answers, with their phrases for the span loss, in place of sampled answers."""
        config = self.opened.config
        objective = replace(config.resolved_method.objective, policy_gradient=None)
        opened = replace(self.opened, config=replace(config, policy=Fixed(), objective=objective))
        return build_policy(opened).draw(0)

    @cached_property
    def gradient(self) -> Measured:
        """The gradient of the objective on `draw`, in one micro-batch."""
        return measure(self.learning, self.draw, micro_batch_size=max(1, len(self.draw.items)))

    @cached_property
    def reading(self) -> Reading:
        """Both models' numbers on gold answers."""
        return read_gold(self.opened)

    @cached_property
    def exported(self) -> Exported:
        """The student after an export.

        Its parameters in memory are changed, so this is used after all other checks.
        """
        return export(self.opened, self.opened.data.train[0])

    def batches(self, sequences: Sequence[TokenSequence]) -> list[Batch]:
        """Sequences as the training loop collates them."""
        draw = Draw(items=items_of(sequences, "sft", "distillation"))
        return cut(draw, len(sequences), self.learning)


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """What the checks examine.

    Args:
        config: The recipe; a stage that has not been trained is replaced by the model that it starts from.
        tokenizer: The student's.
        teacher_tokenizer: None without a local teacher, and where the student's is the same.
        texts: A sample of the data.
        found: The models, or the error that ended their loading.
    """

    config: Run
    tokenizer: Tokenizer
    teacher_tokenizer: Tokenizer | None
    texts: Texts
    found: Loaded | RedistillError

    @property
    def loaded(self) -> Loaded:
        """The models; raises NotExamined if they could not be loaded."""
        if isinstance(self.found, RedistillError):
            raise NotExamined("the models could not be loaded")
        return self.found


@contextmanager
def opened_subject(run: Run, folder: Path, report: Report) -> Iterator[Subject]:
    """Read a sample of the data and load the models of a recipe.

    Args:
        run: The recipe.
        folder: A temporary folder, which replaces the recipe's output folder.
        report: Called with the name of each phase.

    Raises:
        ConfigError, DataError, ModelError: a run of the recipe would end with the same error.
    """
    config, notes = without_untrained_stages(run)
    for note in notes:
        report(note)
    report("reading the data")
    source, taught_by = student_source(config), teacher_source(config)
    assert taught_by is not None or source.model != "teacher", "checked when the recipe is read"
    tokenizer = load_tokenizer(taught_by if taught_by is not None and source.model == "teacher" else source)
    other = load_tokenizer(taught_by) if taught_by is not None and source.model != "teacher" else None
    texts = read_texts(config, tokenizer)
    report(f"loading the models ({source.model}{f', {taught_by.model}' if taught_by is not None else ''})")
    found: Loaded | RedistillError
    try:
        found = load(shortened(config, folder), tokenizer, texts)
    except (VocabularyError, WeightsError, NotFiniteError) as error:
        found = error
    yield Subject(config=config, tokenizer=tokenizer, teacher_tokenizer=other, texts=texts, found=found)


def without_untrained_stages(run: Run) -> tuple[Run, list[str]]:
    """The recipe with a stage's base in place of a model that is not trained yet.

    Also returns a note about each such stage.
    """
    missing = [name for name, stage in stages(run).items() if not has_model(stage.folder)]
    teacher, student = run.teacher, run.student
    if "teacher" in missing:
        assert isinstance(teacher, TeacherConfig)
        teacher = replace(teacher, finetune=None)
    if "start" in missing:
        student = replace(student, finetune=None, start="base")
    notes = [f"stage {name}: its model is not trained yet, and is examined before its fine-tuning" for name in missing]
    return replace(run, teacher=teacher, student=student), notes


def read_texts(config: Run, tokenizer: Tokenizer) -> Texts:
    """A sample of the recipe's data."""
    data = config.data
    named = [(source, "train") for source in data.train]
    rows = [record for source, split in named for record in survey_records(source, split=split)[0]]
    records = spread(rows, SAMPLE_ROWS)
    held_out = [] if data.validation is None else survey_records(data.validation, split="validation")[0]
    tests = [record for found in load_tests(data, lambda line: None).values() for record in found]
    examples, report = tokenize_training(records, tokenizer, data.tokens, config.seed)
    count = len(rows) - (data.validation_rows if data.validation is None else 0)
    return Texts(
        records=records,
        prompts=spread([*held_out, *tests], SAMPLE_ROWS),
        examples=examples,
        report=report,
        sources=check_data(named, {}),
        num_examples=max(1, min(count, data.max_train_rows or count)),
    )


def spread(rows: Sequence[Record], count: int) -> list[Record]:
    """At most `count` rows, evenly spaced."""
    if len(rows) <= count:
        return list(rows)
    return [rows[index * len(rows) // count] for index in range(count)]


def shortened(config: Run, folder: Path) -> Run:
    """A run of one update of few rows and short answers, with its files in `folder`."""
    size = min(config.training.batch_size, UPDATE_ROWS)
    policy = self_contained(config.resolved_method.policy, size)
    tokens = config.data.tokens
    return replace(
        config,
        out=str(folder),
        policy=policy,
        data=replace(config.data, tokens=replace(tokens, response_tokens=min(tokens.response_tokens, RESPONSE_TOKENS))),
        training=replace(
            config.training,
            updates=1,
            batch_size=size,
            micro_batch_size=None,
            evaluate_every=0,
            save_every=0,
            compile="none",
        ),
    )


def self_contained(policy: PolicyConfig, size: int) -> PolicyConfig:
    """The policy with the roll-outs of one batch only, in the run folder only.

    A file of teacher answers outside the run folder is neither read nor written.
    """
    if isinstance(policy, TeacherGenerated):
        return replace(policy, store=None)
    if isinstance(policy, Mixed | Buffered | Adaptive | Revised):
        return replace(policy, source=self_contained(policy.source, size))
    return replace(policy, num_rollouts=size) if isinstance(policy, Rollouts) else policy


def load(config: Run, tokenizer: Tokenizer, texts: Texts) -> Loaded:
    """Load the models and build the parts of a run."""
    models = load_models(config)
    by_length = sorted(texts.examples, key=lambda example: len(example.token_ids))
    records = spread([example.record for example in by_length], GOLD_ROWS)
    examples, _ = tokenize_training(records, tokenizer, config.data.tokens, config.seed)
    data = DataSets(train=examples, validation=records, validation_examples=examples, tests={}, manifest={})
    opened = assemble(config, make_accelerator(config.training.precision), models, data, Progress(enabled=False))
    is_trainable = any(parameter.requires_grad for parameter in opened.student.model.parameters())
    evaluator = build_evaluator(opened, models.student)
    return Loaded(opened=opened, parts=build_parts(opened, evaluator) if is_trainable else None)
