"""`redistill inspect revision`: logged or new corrections of student text.

The corrections are those of SCRG (sequence correction and re-generation), the policy `revised`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, count, islice
from pathlib import Path

from redistill.contracts import TokenSequence
from redistill.errors import ConfigError, DataError
from redistill.inspection.subject import Opened, Subject, check_row, opened
from redistill.policies import Revised, Revision
from redistill.policies.draft_scores import Scores, ScoresDrafts
from redistill.policies.order import GoldItem
from redistill.policies.revised import RevisedSource, draft_scores
from redistill.policies.source import Stateless
from redistill.records import Json
from redistill.reports.folders import log_lines
from redistill.runs.build import build_gold, build_policy_tools, remembering
from redistill.runs.revisions import FILE, described, verbatim

_LISTED_STEPS = 10  # logged steps in an error message


# --- logged revisions ---------------------------------------------------------------------------------------------------


def logged_revisions(folder: Path, step: int) -> list[dict[str, Json]]:
    """Return the lines of revisions.jsonl for one update, in the order of the file.

    Args:
        folder: The run folder.
        step: Number of the update, from 1.

    Raises:
        DataError: the run has no revisions.jsonl, or no correction is logged for this update.
        CheckpointError: the file is damaged.
    """
    if not (folder / FILE).is_file():
        raise DataError(f"{folder}: has no {FILE}; only a run with the policy revised logs corrections; use --live")
    found, others = list[dict[str, Json]](), dict[str, None]()
    for line in log_lines(folder / FILE):
        if line.get("step") == step:
            found.append(dict(line))
        else:
            others[str(line.get("step"))] = None
    if not found:
        listed = ", ".join([*others][:_LISTED_STEPS]) + (", ..." if len(others) > _LISTED_STEPS else "")
        remedy = f"choose one of {listed}" if listed else "the run has logged none; use --live"
        raise DataError(f"{folder / FILE}: --step {step}: no correction is logged; {remedy}")
    return found


# --- revisions with the present student ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DraftToken:
    """A token of a draft.

    Args:
        token_id: The token id.
        text: The text of the token.
        teacher_id: The token id of the teacher's token at the same position.
        teacher: The text of the teacher's token.
        score: The disagreement of the models at this position, in nats, as the setting `detection` defines it.
    """

    token_id: int
    text: str
    teacher_id: int
    teacher: str
    score: float


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A draft of the student, with its corrections.

    Args:
        sample: Index of the training example.
        prompt: The prompt.
        tokens: The tokens of the draft.
        revisions: The corrections, one for each round that replaced a token; each has the keys of a line of
            revisions.jsonl.
    """

    sample: int
    prompt: str
    tokens: Sequence[DraftToken]
    revisions: Sequence[dict[str, Json]]


@dataclass(frozen=True, kw_only=True)
class LiveRevisions:
    """Drafts of a student, with their corrections.

    Args:
        student: Where the student's weights come from, such as "checkpoint step-40".
        step: Number of the update for which these drafts would be generated.
        detection: The score that measures the disagreement.
        drafts: The drafts.
    """

    student: str
    step: int
    detection: str
    drafts: Sequence[Draft]

    def as_json(self) -> dict[str, object]:
        """Return the drafts as JSON values."""
        drafts = [vars(draft) | {"tokens": [vars(token) for token in draft.tokens]} for draft in self.drafts]
        return {"student": self.student, "step": self.step, "detection": self.detection, "drafts": drafts}


def live_revisions(subject: Subject, prompts: int | None = None, step: int | None = None) -> LiveRevisions:
    """Generate drafts with a student, and correct them.

    The prompts, random numbers and settings are those of the next update.  With the checkpoint before an update, the result
    therefore contains the corrections that the run logged for this update, up to rounding.  Every prompt has a draft, even if a
    policy such as `mixed` trains on its gold answer.

    Args:
        subject: The run or recipe.
        prompts: Number of prompts; None for the batch size of the run.
        step: Number of updates of the checkpoint to use; None for the newest one.

    Raises:
        ConfigError: the run has no local teacher, or fewer training examples than prompts.
        CheckpointError: the checkpoint does not exist.
    """
    if subject.config.teacher is None:
        raise ConfigError(f"{subject.name}: has no teacher, and a correction needs one; add teacher.model")
    data = subject.data(subject.tokenizer())
    check_row(subject, (prompts or 1) - 1, len(data[1].train))
    with opened(subject, data, step) as found:
        subject.report("generating")
        return _revised(found, prompts)


def _revised(found: Opened, prompts: int | None) -> LiveRevisions:
    run, tokenizer, logged = found.run, found.run.models.tokenizer, list[Revision]()
    node, gold = _revision_policy(run.config.resolved_method.policy), build_gold(run)
    tools = build_policy_tools(run, gold, logged.append)
    size = run.config.training.batch_size if prompts is None else prompts
    items = list(islice(chain.from_iterable(gold.all_items(each) for each in count(found.step)), size))
    with remembering(run):
        sequences = node.source.bind(tools).sequences(found.step, items)
        drafts = [each for each in sequences if each.origin in {"student", "mixture"}]
        scores = _RecordedScores(draft_scores(node, tools))
        RevisedSource(node, _Given(drafts), tools, scores).sequences(found.step, items)
    made = list[Draft]()
    for draft, score_T, teacher_T in zip(drafts, *(scores.rounds[0] if drafts else ((), ()))):
        columns = zip(draft.response_ids, teacher_T.tolist(), score_T.tolist())  # teacher_T and score_T are padded
        tokens = [
            DraftToken(
                token_id=token,
                text=verbatim(tokenizer, [token]),
                teacher_id=taught,
                teacher=verbatim(tokenizer, [taught]),
                score=score,
            )
            for token, taught, score in columns
        ]
        revisions = [described(tokenizer, each) for each in logged if each.sample == draft.sample]
        prompt = verbatim(tokenizer, draft.prompt_ids)
        made.append(Draft(sample=draft.sample, prompt=prompt, tokens=tokens, revisions=revisions))
    return LiveRevisions(student=found.student, step=found.step + 1, detection=node.detection, drafts=made)


def _revision_policy(policy: object) -> Revised:
    """Return the settings of a run's policy `revised`, or the default settings.

    The default settings are returned if the run does not use the policy `revised`.
    """
    while policy is not None and not isinstance(policy, Revised):
        policy = getattr(policy, "source", None)
    return Revised() if policy is None else replace(policy, chunk_tokens="all", mode="replace")


class _Given(Stateless):
    """A source of sequences that returns the sequences given to its constructor."""

    def __init__(self, sequences: Sequence[TokenSequence]) -> None:
        self._sequences = list(sequences)

    def sequences(self, step: int, items: Sequence[GoldItem]) -> list[TokenSequence]:
        return self._sequences


class _RecordedScores:
    """Scores drafts with another scorer, and stores the scores of each round."""

    def __init__(self, scores: ScoresDrafts) -> None:
        self._scores, self.rounds = scores, list[Scores]()

    def of(self, step: int, number: int, drafts: Sequence[TokenSequence]) -> Scores:
        self.rounds.append(self._scores.of(step, number, drafts))
        return self.rounds[-1]
