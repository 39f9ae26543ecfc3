"""Builds a run of one update that represents the updates of a whole run.

The sample has the configuration of the run, and artificial data with the text lengths of the run's data.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

from redistill.config.capabilities import why_gold
from redistill.config.engines import decoder_of
from redistill.config.run import Run
from redistill.config.sections import TeacherConfig
from redistill.contracts import Example, TokenSequence
from redistill.data.reader import read_records
from redistill.data.rows import Rows
from redistill.data.tokenize import tokenize_training
from redistill.errors import ConfigError, RedistillError
from redistill.generation.local import LocalEngineConfig
from redistill.interfaces import Tokenizer
from redistill.models.load import ModelConfig, load_tokenizer
from redistill.policies import Adaptive, GoldBatches, Mixed, Paired, PolicyConfig, Rollouts, TeacherGenerated
from redistill.policies.order import coin, gold_sequence
from redistill.records import RawPrompt, Record
from redistill.runs.load import DataSets
from redistill.storage.paths import expanded
from redistill.training.lengths import in_updates

SAMPLE_ROWS = 256
"""Maximum number of rows of the training data from which text lengths are taken."""


class Sample(NamedTuple):
    """A run of one update, with its data, that is measured instead of the whole run.

    Args:
        run: Configuration of the update.  The update generates text even if only some updates of the run do.  It writes to a
            separate folder, and uses an engine and a teacher in this process.
        tokenizer: Tokenizer of the student.
        data: The examples of the update, and one batch of validation prompts.
        corpus: Blocks of text for the pre-training term; empty without this term.
        step: Number of the measured update, from 0. The number determines the random choices of the policy between gold answers
            (answers in the data) and generated text.
        generating: Amount of text that an average update of the run generates, divided by that of the measured update.
        num_examples: Number of examples of the training set; None if the training data was not read.
        notes: Assumptions of the sample.
    """

    run: Run
    tokenizer: Tokenizer
    data: DataSets
    corpus: tuple[TokenSequence, ...]
    step: int
    generating: float
    num_examples: int | None
    notes: tuple[str, ...]

    def in_folder(self, name: str) -> Self:
        """Return the sample with the new subfolder `name` as its run folder.

        With separate folders, no measurement reads files of another measurement.
        """
        folder = self.run.folder / name
        folder.mkdir()
        return self._replace(run=replace(self.run, out=str(folder)))

    def in_updates(self, length: int | str) -> int | None:
        """Convert a length in updates or in epochs ("3 epochs") to a number of updates.

        The result is None if the length is in epochs and the training data was not read.
        """
        if isinstance(length, str) and self.num_examples is None:
            return None
        return in_updates(length, self.num_examples or 0, self.run.training.batch_size)


def sample(run: Run, folder: Path) -> Sample:
    """Build the sample of a run: one update that is measured instead of the whole run.

    The update writes to subfolders of `folder`.

    Raises:
        ModelError: the tokenizer is missing or damaged.
    """
    source = run.teacher if run.student.model == "teacher" else run.student
    assert isinstance(source, ModelConfig), "a student is cut from a local teacher"
    tokenizer = load_tokenizer(source)
    lengths, num_examples, note = text_lengths(run, tokenizer)
    size, rows = run.training.batch_size, min(run.data.validation_rows, run.evaluation.batch_size)
    # Spread evenly over the sorted lengths, so that one batch has about their mean and includes long texts.
    train, held_out = (
        [_example(index, *lengths[int((index + 0.5) * len(lengths) / count)], len(tokenizer)) for index in range(count)]
        for count in (size, rows)
    )
    validation = [example.record for example in held_out]
    data = DataSets(train=train, validation=validation, validation_examples=held_out, tests={}, manifest={})
    corpus, settings, tokens = list[TokenSequence](), run.training, run.data.tokens
    if run.data.corpus and run.resolved_method.objective.pretraining is not None:
        answer = tokens.prompt_tokens + tokens.response_tokens - 1
        corpus = [gold_sequence(_example(index, 1, answer, len(tokenizer))) for index in range(size)]
    epochs = 1.0 if num_examples is None else max(1.0, in_updates(settings.updates, num_examples, size) * size / num_examples)
    policy, generating = _generating(run.resolved_method.policy, size, epochs)
    one = replace(
        run,
        out=str(folder),
        policy=policy,
        engine=LocalEngineConfig(decoder=decoder_of(run.engine)),
        teacher=run.teacher and TeacherConfig(model="teacher"),
        data=replace(run.data, corpus=()),
        training=replace(settings, updates=1, compile="rows" if settings.compile == "all" else settings.compile),
    )
    step = _mean_step(policy, train, run.seed)
    return Sample(one, tokenizer, data, tuple(corpus), step, generating, num_examples, (note, *_notes(run)))


def _generating(policy: Any, batch_size: int, epochs: float) -> tuple[PolicyConfig, float]:
    """Return a policy that generates text in the measured update, and a factor.

    The policy is a changed copy of `policy`; a nested policy (`source`) is changed as well.  The factor is the amount of text
    that an average update of the run generates, divided by that of the measured update.
    """
    generating = 1.0
    # `Adaptive` generates about half of the sequences once it has started, because of its threshold and its replay buffer.
    if isinstance(policy, Adaptive):
        policy = Mixed(source=policy.source, student_fraction=0.5, coin=policy.coin)
    if hasattr(policy, "source"):
        source, generating = _generating(policy.source, batch_size, epochs)
        policy = replace(policy, source=source)
    match policy:
        case Mixed(student_fraction=fraction, coin="step") if fraction > 0:
            return replace(policy, student_fraction=1.0), fraction * generating
        case Rollouts():
            return replace(policy, num_rollouts=batch_size), generating / policy.inner_epochs
        case Paired(teacher=teacher):
            return replace(policy, teacher=replace(teacher, store=None)), generating
        case TeacherGenerated():  # an answer is generated once in a run
            return replace(policy, store=None), 1 / epochs
    return policy, generating


def _mean_step(policy: PolicyConfig, train: list[Example], seed: int) -> int:
    """Return a step at which the policy generates about its mean number of texts.

    The policy `Mixed` chooses at random between answers from the data and generated text.  For other policies, the step is 0.
    """
    if not isinstance(policy, Mixed):
        return 0
    items = GoldBatches(train, batch_size=len(train), seed=seed).items(0)
    fallen = [sum(coin(seed, step, item, policy.coin) < policy.student_fraction for item in items) for step in range(100)]
    return min(range(100), key=lambda step: abs(fallen[step] - policy.student_fraction * len(items)))


def _notes(run: Run) -> list[str]:
    policy, lora, teacher = run.resolved_method.policy, run.student.lora, run.teacher
    is_local = teacher is None or (isinstance(teacher, TeacherConfig) and teacher.is_loaded)
    is_tuned = isinstance(teacher, TeacherConfig) and teacher.finetune is not None
    is_quantised = lora is not None and lora.quantise != "none"
    is_quantised |= isinstance(teacher, TeacherConfig) and teacher.quantise is not None
    is_offloaded = isinstance(teacher, TeacherConfig) and teacher.offload is not None
    length = f"every generated text is assumed to have the maximum length, {run.data.tokens.response_tokens} tokens"
    found = {
        length: policy.sampling is not None or policy.needs.teacher_text,
        "the time of text generation is that of an engine in this process": not isinstance(run.engine, LocalEngineConfig),
        "the teacher does not run in this process; a model with one layer is timed in its place": not is_local,
        "the student is timed without the compilation of its body (training.compile = all)": run.training.compile == "all",
        "memory is estimated with quantised weights, time with weights that are not quantised": is_quantised,
        "the estimate is that of a teacher whose layers are not offloaded, which needs more memory and less time": is_offloaded,
        "fine-tuning before the run (`finetune`) is not included": is_tuned or run.starts_finetuned,
    }
    return [note for note, applies in found.items() if applies]


def text_lengths(run: Run, tokenizer: Tokenizer) -> tuple[list[tuple[int, int]], int | None, str]:
    """Return text lengths of the training data, or the length limits of the recipe.

    The first result is a list of pairs (prompt, answer) of lengths in tokens, sorted by their sum.  The second is the number of
    examples, or None if the data was not read.  The third is a note on the source of the lengths.
    """
    data, why = run.data, "the training data is not in local files"
    sources = [source for source, split in data.sources if split == "train"]
    if all(expanded(source.path).exists() for source in sources):
        try:
            needs_gold = bool(why_gold(run.resolved_method))
            read = partial(read_records, max_bad_rows=data.max_bad_rows, require_answer=needs_gold)
            records = Rows.joined([read(source)[0] for source in sources])
            examples, _ = tokenize_training(
                records[:SAMPLE_ROWS], tokenizer, data.tokens, run.seed, prompts_alone=not needs_gold
            )
            held_out = data.validation_rows if data.validation is None else 0
            count = min(max(1, len(records) - held_out), data.max_train_rows or len(records))
            limit = data.tokens.response_tokens  # of the generated answer to a prompt alone
            lengths = sorted(((len(e.prompt_ids), sum(e.supervised) or limit) for e in examples), key=sum)
            return lengths, count, f"text lengths are those of {len(lengths)} rows of the training data"
        except ConfigError:  # the run raises it too
            raise
        except RedistillError as error:
            why = str(error)
    return [(data.tokens.prompt_tokens, data.tokens.response_tokens)], None, f"lengths are the recipe's limits: {why}"


def _example(sample: int, prompt: int, answer: int, vocabulary: int) -> Example:
    """Return an artificial example.

    `prompt` and `answer` are the numbers of tokens of its prompt and answer.  `sample` is the index of the example, and
    `vocabulary` is the number of token ids.
    """
    ids = tuple((sample + index) % vocabulary for index in range(prompt + answer))
    record = Record(record_id=str(sample), prompt=RawPrompt("a " * prompt), references=("a",))
    marks = (False,) * prompt + (True,) * answer
    return Example(sample=sample, record=record, prompt_ids=ids[:prompt], token_ids=ids, supervised=marks)
