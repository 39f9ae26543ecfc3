"""The data and models of a recipe that the checks of `redistill doctor` examine.

The recipe is shortened to one update. Its models, policy and other components are loaded once for all checks. Files are written
only to a temporary folder.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from redistill.config.run import Run, with_template_date
from redistill.config.sections import TeacherConfig
from redistill.contracts import Batch, Draw, Example, TokenSequence, items_of
from redistill.data.chat import fixed_date
from redistill.data.check import SourceCheck, check_data
from redistill.data.reader import survey_records
from redistill.data.templates import renderings
from redistill.data.tokenize import TokenizeReport, tokenize_training
from redistill.doctor.export import Exported, export
from redistill.doctor.findings import NotExamined
from redistill.doctor.gradient import Measured, measure
from redistill.doctor.reading import Reading, read_gold
from redistill.errors import ConfigError, DataError, NotFiniteError, RedistillError, ServerError, VocabularyError, WeightsError
from redistill.generation.vllm import VllmEngineConfig
from redistill.interfaces import CausalModel, Tokenizer
from redistill.models.load import load_tokenizer
from redistill.policies import Fixed
from redistill.records import Record
from redistill.runs.build import build_evaluator, build_parts, build_policy
from redistill.runs.load import DataSets, load_tests
from redistill.runs.models import load_models
from redistill.runs.opened import OpenRun, assemble, make_accelerator
from redistill.runs.shortened import self_contained, with_stage_folders, without_untrained_stages
from redistill.runs.stages import student_source, teacher_source
from redistill.teachers.cached import CachedTeacherConfig
from redistill.teachers.served import ServedTeacherConfig, announcement
from redistill.training.loop import cut
from redistill.training.parts import Parts
from redistill.training.progress import Progress

SAMPLE_ROWS = 256
"""Maximum number of training rows that are tokenised.

The same limit applies to the validation and test rows together.
"""
GOLD_ROWS, UPDATE_ROWS, RESPONSE_TOKENS = 6, 3, 32
"""Limits of the run that the checks examine.

Both models read at most `GOLD_ROWS` training rows. An update has at most `UPDATE_ROWS` rows, and an answer has at most
`RESPONSE_TOKENS` tokens.
"""

Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Texts:
    """A sample of the recipe's data, tokenised in the same way as in a run.

    Args:
        records: Evenly spaced records of the training data.
        prompts: Evenly spaced records of the validation and test sets.
        examples: The tokenised `records`, without those that training leaves out.
        report: The `records` that training leaves out, with the reasons.
        sources: The unusable and duplicate rows of each training file or hub data set, as `check_data` returns them.
        num_examples: Number of records in the training set, including those that training leaves out.
    """

    records: Sequence[Record]
    prompts: Sequence[Record]
    examples: Sequence[Example]
    report: TokenizeReport
    sources: Sequence[SourceCheck]
    num_examples: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Loaded:
    """The models of a recipe, and the components of the training loop.

    Args:
        opened: The run with one update, with loaded models and at most 6 (`GOLD_ROWS`) training examples.
        parts: The components that the training loop uses; None if the student has no trainable parameter.
    """

    opened: OpenRun
    parts: Parts | None
    _faults: list[ServerError] = field(default_factory=list, init=False)

    @property
    def student(self) -> CausalModel:
        """The student's language model, including its adapters."""
        return self.opened.models.student

    @property
    def learning(self) -> Parts:
        """The components that the training loop uses.

        Raises:
            NotExamined: the student has no trainable parameter.
        """
        if self.parts is None:
            raise NotExamined("the student has no trainable parameter")
        return self.parts

    @cached_property
    def draw(self) -> Draw:
        """The sequences that the recipe's policy returns for the first update.

        Raises:
            ServerError: a server that generates text failed.  It is not contacted again.
            NotExamined: a server failed when the property was accessed before.
        """
        if self._faults:
            raise NotExamined("a server failed in another check")
        self.opened.student.eval()
        try:
            self.opened.engine.sync(self.student, 0)
            return self.learning.policy.draw(0)
        except ServerError as error:
            self._faults.append(error)
            raise

    @cached_property
    def gold_draw(self) -> Draw:
        """The sequences of an update with gold answers (answers in the data) only.

        If the objective has a span loss, the sequences include spans.
        """
        config = self.opened.config
        objective = replace(config.resolved_method.objective, policy_gradient=None)
        opened = replace(self.opened, config=replace(config, policy=Fixed(), objective=objective))
        return build_policy(opened).draw(0)

    @cached_property
    def gradient(self) -> Measured:
        """Value and gradient of the objective on `self.draw.items`, without dropout."""
        return measure(self.learning, self.draw, micro_batch_size=max(1, len(self.draw.items)))

    @cached_property
    def reading(self) -> Reading:
        """Statistics of both models' logits on gold answers (answers in the data)."""
        return read_gold(self.opened)

    @cached_property
    def exported(self) -> Exported:
        """The result of exporting the student and loading the exported model.

        The export changes the student's parameters in memory. Checks that use this property therefore run last.
        """
        return export(self.opened, self.opened.data.train[0])

    def batches(self, sequences: Sequence[TokenSequence]) -> list[Batch]:
        """Return the batches that the training loop makes from sequences."""
        draw = Draw(items=items_of(sequences, "sft", "distillation"))
        return cut(draw, len(sequences), self.learning)


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """The recipe, data and models that the checks of `redistill doctor` examine.

    Args:
        config: The recipe. A recipe can fine-tune the teacher or the student before distillation. If the fine-tuned model does
            not exist yet, the settings of the fine-tuning are removed, and the checks examine the original model.
        tokenizer: The student's tokenizer.
        teacher_tokenizer: The teacher's tokenizer; None if there is no local teacher, or if the student uses the teacher's
            tokenizer.
        texts: A sample of the data.
        found: The models, or the error that was raised when they were loaded.
    """

    config: Run
    tokenizer: Tokenizer
    teacher_tokenizer: Tokenizer | None
    texts: Texts
    found: Loaded | RedistillError

    @property
    def loaded(self) -> Loaded:
        """The models of the recipe, and the components of the training loop.

        Raises:
            NotExamined: the models could not be loaded.
        """
        if isinstance(self.found, RedistillError):
            raise NotExamined("the models could not be loaded")
        return self.found


@contextmanager
def opened_subject(run: Run, folder: Path, report: Report) -> Iterator[Subject]:
    """Context that yields the loaded models of a recipe, and a sample of its data.

    If loading raises a VocabularyError, WeightsError or NotFiniteError, the field `found` has this error instead of the models.

    Args:
        run: The recipe.
        folder: A temporary folder, which replaces the recipe's output folder.
        report: Function that is called with the name of each phase when it starts.

    Raises:
        ConfigError, DataError, ModelError: the recipe cannot be run; `redistill run` raises the same error.
    """
    config, notes = without_untrained_stages(without_cache(run))
    for note in notes:
        report(note)
    report("reading the data")
    source, taught_by = student_source(config), teacher_source(config)
    assert taught_by is not None or source.model != "teacher", "checked when the recipe is read"
    tokenizer = load_tokenizer(taught_by if taught_by is not None and source.model == "teacher" else source)
    other = load_tokenizer(taught_by) if taught_by is not None and source.model != "teacher" else None
    config = with_template_date(config, fixed_date(tokenizer, None))  # so that two renderings do not differ in the time
    texts = read_texts(config, tokenizer)
    if isinstance(config.teacher, ServedTeacherConfig):
        report(announcement(config.teacher))
    if isinstance(config.engine, VllmEngineConfig):
        report(config.engine.announcement())
    report(f"loading the models ({source.model}{f', {taught_by.model}' if taught_by is not None else ''})")
    found: Loaded | RedistillError
    try:
        found = load(shortened(config, folder), tokenizer, texts)
    except (VocabularyError, WeightsError, NotFiniteError) as error:
        found = error
    yield Subject(config=config, tokenizer=tokenizer, teacher_tokenizer=other, texts=texts, found=found)


def without_cache(run: Run) -> Run:
    """Return a recipe whose teacher is loaded as a model, without a cache.

    A cache of hidden states does not contain the rows that doctor samples.

    Raises:
        ConfigError: the recipe does not name the teacher's model.
    """
    if isinstance(run.teacher, CachedTeacherConfig):
        raise ConfigError(
            "teacher.kind = 'cached': the cache has no hidden states of the rows that doctor examines; pass the recipe that "
            "created the cache"
        )
    teacher = replace(run.teacher, cache=None) if isinstance(run.teacher, TeacherConfig) else run.teacher
    return replace(run, teacher=teacher)


def read_texts(config: Run, tokenizer: Tokenizer) -> Texts:
    """Read and tokenise a sample of the recipe's data."""
    data = config.data
    named = [(source, split) for source, split in data.sources if split == "train"]
    rows = [record for source, split in named for record in survey_records(source, split=split)[0]]
    if not rows:
        raise DataError(
            "doctor: the training data has no usable row with an answer; add at least one; `redistill data check --recipe` "
            "lists the unusable rows"
        )
    records = spread(rows, SAMPLE_ROWS)
    held_out = [row for source, of in data.sources if of != "train" for row in survey_records(source, split=of)[0]]
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
    """Return at most `count` evenly spaced rows."""
    if len(rows) <= count:
        return list(rows)
    return [rows[index * len(rows) // count] for index in range(count)]


def shortened(config: Run, folder: Path) -> Run:
    """Return a shortened recipe, with one update on few sequences.

    The update has at most 3 (`UPDATE_ROWS`) sequences, whose answers have at most 32 (`RESPONSE_TOKENS`) tokens. `folder` is
    the output folder of the result.
    """
    config = with_stage_folders(config)  # whose default depends on the output folder
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


def load(config: Run, tokenizer: Tokenizer, texts: Texts) -> Loaded:
    """Load the models, and build the components of the training loop.

    At most 6 (`GOLD_ROWS`) examples of `texts` are used, from the shortest to the longest.
    """
    models = load_models(config)
    by_length = sorted(texts.examples, key=lambda example: len(example.token_ids))
    records = spread([example.record for example in by_length], GOLD_ROWS)
    examples, _ = tokenize_training(records, tokenizer, config.data.tokens, config.seed)
    prompts = Counter(type(record.prompt).__name__ for record in texts.records)
    manifest = {"templates": {"train": renderings(prompts, config.data.tokens.template)}}
    data = DataSets(train=examples, validation=records, validation_examples=examples, tests={}, manifest=manifest)
    opened = assemble(config, make_accelerator(config.training.precision), models, data, Progress(enabled=False))
    is_trainable = any(parameter.requires_grad for parameter in opened.student.model.parameters())
    evaluator = build_evaluator(opened, models.student)
    return Loaded(opened=opened, parts=build_parts(opened, evaluator) if is_trainable else None)
