"""Prints the results of `redistill inspect` on the terminal.

Texts of models and data are untrusted.  Every text is passed through `redaction.plain_line` before it is printed.
"""

import json
from collections.abc import Mapping, Sequence

from rich.table import Table
from rich.text import Text

from redistill.inspection.clip import Clip
from redistill.inspection.prompt import Answers
from redistill.inspection.revision import Draft, LiveRevisions
from redistill.inspection.sample import Sample
from redistill.processes.streams import console
from redistill.records import Json
from redistill.storage.redaction import plain_line

_END = 300  # characters that are printed of the end of a long context


def quoted(text: object) -> str:
    r"""Return text in quotation marks, so that its spaces are visible.

    Line ends are escaped.

    Example:
        >>> quoted(" the\n")
        '" the\\n"'
    """
    return plain_line(json.dumps(str(text), ensure_ascii=False))


def print_sample(sample: Sample) -> None:
    """Print the tokens of a training example, and the spans of its answer."""
    number = sum(token.target is not None for token in sample.tokens)
    _print(f"row {sample.row}: {sample.record}, {len(sample.tokens)} tokens, of which {number} are targets")
    table = _table("position", "id", "token", "target", "spans")
    for position, token in enumerate(sample.tokens):
        inside = [
            index
            for index, span in enumerate(sample.spans or ())
            if token.target is not None and span.start <= token.target < span.stop
        ]
        target = "" if token.target is None else str(token.target)
        _row(table, position, token.token_id, quoted(token.text), target, " ".join(map(str, inside)))
    console().print(table)
    if sample.spans is None:
        _print("no spans: the objective has no span loss, or the row has no answer")
        return
    table = _table("span", "targets", "text", "used")
    for index, span in enumerate(sample.spans):
        _row(table, index, f"{span.start}-{span.stop - 1}", quoted(span.text), "yes" if span.is_used else "no")
    console().print(table)


def print_revisions(lines: Sequence[Mapping[str, Json]]) -> None:
    """Print corrections of student text; `lines` are lines of revisions.jsonl."""
    for line in lines:
        score = line.get("kl")
        shown = f"{score:.4f}" if isinstance(score, float) else str(score)
        _print(f"step {line.get('step')}, sample {line.get('sample')}: error at token {line.get('position')}, {shown} nats")
        table = _table("part", "text")
        for name in ("prompt", "kept", "student_token", "teacher_token", "student_tail", "new_tail"):
            _row(table, name.replace("_", " "), quoted(line.get(name, "")))
        console().print(table)


def print_live(found: LiveRevisions) -> None:
    """Print the student's drafts and their corrections.

    Each token of a draft is printed with the disagreement of the models.
    """
    _print(f"student: {found.student}; drafts of update {found.step}; disagreement: {found.detection}, in nats")
    for draft in found.drafts:
        _print(f"sample {draft.sample}: {quoted(_shortened(draft.prompt))}")
        console().print(_draft(draft))
        if not draft.revisions:
            _print("no token is replaced")
        print_revisions(draft.revisions)


def _draft(draft: Draft) -> Table:
    errors = {line["position"] for line in draft.revisions[:1]}
    table = _table("token", "student", "teacher's token", "disagreement", "")
    for position, token in enumerate(draft.tokens):
        mark = "error" if position in errors else ""
        _row(table, position, quoted(token.text), quoted(token.teacher), f"{token.score:.4f}", mark)
    return table


def print_clip(clip: Clip) -> None:
    """Print the window of DAC-KL at one target, with kept and other classes."""
    of = clip.window
    _print(f"student: {clip.student}; row {of.row}, target {of.position}: {quoted(of.target)}")
    _print(f"after: {quoted(_shortened(of.context))}")
    _print(f"interval: l = {of.lower:.4g}, u = {of.upper:.4g}; {of.kept_classes} classes are kept")
    _print(f"kept mass {of.kept_mass:.4f}, recovered {of.recovered:.4f}, divergence {of.divergence:.4f} nats")
    table = _table("id", "token", "teacher", "student", "kept")
    for each in of.classes:
        _row(
            table,
            each.token_id,
            quoted(each.text),
            f"{each.teacher:.4g}",
            f"{each.student:.4g}",
            "yes" if each.is_kept else "no",
        )
    console().print(table)


def print_answers(found: Answers) -> None:
    """Print the answers of student and teacher, with the tokens' log-probabilities."""
    _print(f"student: {found.student}")
    _print(f"prompt: {quoted(found.prompt)}")
    for role, tokens in found.answers.items():
        _print(f"answer of the {role}: {quoted(''.join(token.text for token in tokens))}")
        table = _table("token", "text", "log p of student", "log p of teacher")
        for position, token in enumerate(tokens):
            teacher = "" if token.teacher is None else f"{token.teacher:.4f}"
            _row(table, position, quoted(token.text), f"{token.student:.4f}", teacher)
        console().print(table)


def _shortened(text: str) -> str:
    return text if len(text) <= _END else f"...{text[-_END:]}"


def _print(line: str) -> None:
    console().print(Text(plain_line(line)), soft_wrap=True)


def _table(*columns: str) -> Table:
    table = Table()
    for column in columns:
        table.add_column(Text(column), overflow="fold")
    return table


def _row(table: Table, *cells: object) -> None:
    table.add_row(*(Text(plain_line(str(cell))) for cell in cells))
