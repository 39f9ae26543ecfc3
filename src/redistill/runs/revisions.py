"""Writes the logs of corrections: revisions.jsonl and revision-positions.jsonl.

The corrections are made by SCRG (sequence correction and re-generation): the token at which the student disagrees most with
the teacher is replaced, and the student generates the text after this token again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from redistill.config.run import Run
from redistill.contracts import TokenSequence
from redistill.evaluation.positions import by_token
from redistill.interfaces import Tokenizer
from redistill.policies import Revision, Scorer
from redistill.records import Json
from redistill.storage import files, logs
from redistill.vocab_pass import Statistic

FILE = "revisions.jsonl"
POSITIONS = "revision-positions.jsonl"
STATISTICS: tuple[Statistic, ...] = ("reverse_kl", "student_logprob", "teacher_logprob")
"""The row statistics of a line of revision-positions.jsonl."""
PER_UPDATE = 2
"""Maximum number of lines of revision-positions.jsonl for one update."""


@dataclass
class RevisionLog:
    """Logs the corrections of every `training.log_every`-th update.

    revisions.jsonl has a line for each correction.  revision-positions.jsonl has the divergences by token of at most
    `PER_UPDATE` corrections of an update, before and after the correction.  Its size limit grows in proportion to the updates
    done, so that its lines cover the whole run.  Only the main process logs, so corrections of texts that other processes train
    on are not logged.

    Args:
        config: The run.
        tokenizer: The student's tokenizer.
        updates: Number of updates of the run.
        scorer: Computes statistics of both models; if None, revision-positions.jsonl is not written.  It must not change the
            state of the models or of the teacher that the policy uses: logging has no effect on training.
        mark_spans: Function that adds the spans of phrases to sequences; None if no term of the objective uses spans.
    """

    config: Run
    tokenizer: Tokenizer
    updates: int
    scorer: Scorer | None = None
    mark_spans: Callable[[Sequence[TokenSequence]], list[TokenSequence]] | None = None
    _last: tuple[int, int] = field(default=(-1, 0), init=False)  # an update, and the number of its lines

    def __call__(self, revision: Revision) -> None:
        """Append a correction to the logs.

        Nothing is appended if the number of earlier updates is not a multiple of `training.log_every`.
        """
        if revision.step % self.config.training.log_every:
            return
        files.append_line(self.config.folder / FILE, described(self.tokenizer, revision))
        step, count = self._last
        count = count if step == revision.step else 0
        if self.scorer is not None and count < PER_UPDATE:
            self._append_positions(revision, self.scorer)
            self._last = (revision.step, count + 1)

    def _append_positions(self, revision: Revision, scorer: Scorer) -> None:
        """Append a line to revision-positions.jsonl, unless the file would exceed its limit."""
        path, limit = self.config.folder / POSITIONS, self.config.evaluation.measure.positions_bytes
        free = limit * (revision.step + 1) // self.updates - logs.num_bytes(path)
        if free <= 0:
            return
        texts = [revision.before, revision.after]
        found = by_token(scorer, self.tokenizer, texts, STATISTICS)
        if self.mark_spans is not None:
            marked = self.mark_spans(texts)
            found = [each | {"spans": [list(span) for span in text.spans]} for each, text in zip(found, marked, strict=True)]
        before, after = found
        place = {"step": revision.step + 1, "sample": revision.sample, "position": revision.position}
        line = {**place, "before": before, "after": after}
        if files.line_size(line) <= free:
            files.append_line(path, line)


def described(tokenizer: Tokenizer, revision: Revision) -> dict[str, Json]:
    """Return the line of revisions.jsonl for a correction of student text.

    The key "step" is the number of the update for which the text was corrected, from 1.

    Args:
        tokenizer: The student's tokenizer.
        revision: The correction.
    """
    before, after, position = revision.before, revision.after, revision.position
    texts = {
        "prompt": before.prompt_ids,
        "kept": before.response_ids[:position],
        "student_token": before.response_ids[position : position + 1],
        "teacher_token": after.response_ids[position : position + 1],
        "student_tail": before.response_ids[position + 1 :],
        "new_tail": after.response_ids[position + 1 :],
    }
    line: dict[str, Json] = {"step": revision.step + 1, "sample": revision.sample, "position": position, "kl": revision.kl}
    return line | {name: verbatim(tokenizer, ids) for name, ids in texts.items()}


def verbatim(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Return the text of tokens, including special tokens and all spaces."""
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
