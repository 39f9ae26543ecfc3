"""`redistill inspect prompt`: answers of student and teacher.

Each token of an answer has its log-probability under both models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch

from redistill.config.run import Run
from redistill.contracts import GenerationRequest, Sampling, TextTeacher, TokenSequence, items_of
from redistill.data.collate import collate
from redistill.data.sequences import SequenceEncoder
from redistill.data.templates import Prompt
from redistill.errors import ConfigError, DataError
from redistill.inspection.subject import Opened, Subject, opened, run_folder
from redistill.records import Conversation, Instruction, RawPrompt, Record, Turn
from redistill.reports.folders import at, mapping
from redistill.runs.build import student_reader
from redistill.runs.folder import RUN_FILE
from redistill.runs.load import DataSets
from redistill.runs.renderings import trained_templates
from redistill.runs.revisions import verbatim
from redistill.storage import files
from redistill.vocab_pass import Statistic, row_statistics


@dataclass(frozen=True, kw_only=True)
class AnswerToken:
    """A token of an answer.

    Args:
        token_id: The token id.
        text: The text of the token.
        student: The student's log-probability of the token, in nats.
        teacher: The teacher's log-probability of the token; None without a teacher.
    """

    token_id: int
    text: str
    student: float
    teacher: float | None


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The answers of student and teacher to one prompt.

    Args:
        student: Where the student's weights come from, such as "checkpoint step-40".
        prompt: The prompt, rendered with the template of the run.
        answers: The tokens of the answer of each model: "student", and "teacher" if the run has one.
    """

    student: str
    prompt: str
    answers: Mapping[str, Sequence[AnswerToken]]

    def as_json(self) -> dict[str, object]:
        """Return the answers as JSON values."""
        answers = {role: [vars(token) for token in tokens] for role, tokens in self.answers.items()}
        return {"student": self.student, "prompt": self.prompt, "answers": answers}


def inspect_prompt(
    subject: Subject, text: str, *, temperature: float, max_tokens: int | None, step: int | None = None
) -> Answers:
    """Generate the answers of student and teacher to a prompt.

    Both answers are scored with both models.

    Args:
        subject: The run.
        text: The prompt, without a template.  The run's template renders it.
        temperature: Temperature of sampling, >= 0; 0 is greedy decoding.  The seed is that of the run.
        max_tokens: Maximum number of tokens of an answer; None for the limit of the run.
        step: Number of updates of the checkpoint to use; None for the newest one.

    Raises:
        CheckpointError: the subject is not a run folder, or the checkpoint does not exist.
        ConfigError: the prompt is empty, or the temperature is out of range.
        DataError: the prompt has too many tokens, or the template rejects it.
    """
    folder = run_folder(subject)
    if not text.strip():
        raise ConfigError("inspect prompt: the prompt is empty; write a text")
    if not 0 <= temperature < float("inf"):
        raise ConfigError(f"--temperature {temperature:g}: must be >= 0 and finite; 0 is greedy decoding")
    config = subject.config
    tokens = replace(config.data.tokens, response_tokens=max_tokens or config.data.tokens.response_tokens)
    config = replace(config, data=replace(config.data, tokens=tokens))
    (ids,) = SequenceEncoder(subject.tokenizer(), tokens).prompts([_record(folder, text)])
    if isinstance(ids, DataError):
        raise ids
    if len(ids) > tokens.prompt_tokens:
        raise DataError(
            f"inspect prompt: the prompt has {len(ids)} tokens; the limit of the run is {tokens.prompt_tokens}; shorten it"
        )
    with opened(subject, (config, _no_data()), step) as found:
        subject.report("generating")
        return _answers(found, config, ids, temperature)


def _record(folder: Path, text: str) -> Record:
    """Return a record of the prompt, with the template of most training rows."""
    templates = mapping(at(files.read_json(folder / RUN_FILE), "data", "templates"))
    trained = trained_templates(cast("Mapping[str, Mapping[str, int]]", templates))
    most = max(trained, key=lambda name: trained[name], default="alpaca")
    prompts: dict[str, Prompt] = {"chat": Conversation((Turn("user", text),)), "verbatim": RawPrompt(text)}
    return Record(record_id="prompt", prompt=prompts.get(most, Instruction(text, "")), references=())


def _no_data() -> DataSets:
    return DataSets(train=(), validation=(), validation_examples=(), tests={}, manifest={})


def _answers(found: Opened, config: Run, ids: Sequence[int], temperature: float) -> Answers:
    run, tokenizer = found.run, found.run.models.tokenizer
    limit, sampling = config.data.tokens.response_tokens, Sampling(temperature=temperature)
    request = GenerationRequest(
        prompt_ids=tuple(ids), max_new_tokens=limit, seed=config.seed, stream=("inspect-prompt", found.step)
    )
    texts = {"student": run.engine.generate([request], sampling)}
    if run.teacher is not None:
        texts["teacher"] = cast(TextTeacher, run.teacher).generate([request], sampling)  # a local teacher generates text
    answers = {role: _scored(found, ids, generation.token_ids) for role, (generation,) in texts.items()}
    return Answers(student=found.student, prompt=verbatim(tokenizer, ids), answers=answers)


@torch.no_grad()
def _scored(found: Opened, prompt_ids: Sequence[int], answer_ids: tuple[int, ...]) -> list[AnswerToken]:
    """Return the tokens of an answer, with their log-probabilities under both models."""
    run, tokenizer = found.run, found.run.models.tokenizer
    supervised = (False,) * len(prompt_ids) + (True,) * len(answer_ids)
    sequence = TokenSequence(sample=0, token_ids=(*prompt_ids, *answer_ids), supervised=supervised, origin="student")
    batch = collate(items_of([sequence], "distillation"), pad_id=run.models.pad_id, device=run.accelerator.device)
    hidden_ND, head = student_reader(run)(batch)
    names: list[Statistic] = ["student_logprob"] if run.teacher is None else ["student_logprob", "teacher_logprob"]
    with run.accelerator.autocast():
        target = None if run.teacher is None else run.teacher.rows(batch)
        rows = {
            name: row_N.tolist()
            for name, row_N in row_statistics(hidden_ND, head, target, names, token_N=batch.target_N).items()
        }
    taught: Sequence[float | None] = rows.get("teacher_logprob", [None] * len(answer_ids))
    return [
        AnswerToken(token_id=token, text=verbatim(tokenizer, [token]), student=student, teacher=teacher)
        for token, student, teacher in zip(answer_ids, rows["student_logprob"], taught, strict=True)
    ]
