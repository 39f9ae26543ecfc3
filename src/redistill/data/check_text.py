"""Lines for a terminal that describe checks of data."""

from collections.abc import Iterator, Mapping, Sequence

from redistill.data.check import How, SourceCheck
from redistill.data.reader import ReadReport
from redistill.data.templates import described_renderings
from redistill.storage.redaction import plain

_MEANINGS: Mapping[How, str] = {
    "duplicate": "duplicates of an earlier row",
    "exact": "with the prompt of a test row; a run leaves them out",
    "normalised": "with the prompt of a test row up to case, character width and outer punctuation; a run keeps them",
}


def described(checks: Sequence[SourceCheck]) -> Iterator[str]:
    """Yield lines for a terminal that describe the result of each check.

    The lines contain the number of usable rows, one example of each kind of fault, the repeated rows, and the lengths.
    """
    for check in checks:
        yield from map(plain, _described(check))
    unsound = sum(not check.is_sound for check in checks)
    yield f"{len(checks)} checked, {unsound} with faults" if unsound else f"{len(checks)} checked, no faults"


def _described(check: SourceCheck) -> Iterator[str]:
    yield f"{check.source}{f' (test set {check.test})' if check.test else ''}"
    yield f"  {check.rows} usable rows: {check.verdict}" if check.readable else f"  {check.verdict}"
    if check.unusable:
        yield f"  {len(check.unusable)} unusable rows:"
    if check.unused or check.prompts_alone:
        noted = ReadReport(
            source="", verdict="", num_rows=0, rejected=(), unused=check.unused, prompts_alone=check.prompts_alone
        )
        yield from (f"  {line}" for line in noted.noted())
    for fault, count in check.faults.items():
        example = next(row for row in check.unusable if row.fault == fault)
        yield f"  {count:8d}  {fault}: line {example.line}: {example.reason}"
    for how, text in _MEANINGS.items():
        found = [repeat for repeat in check.repeats if repeat.how == how]
        if found:
            yield f"  {len(found):8d}  {text}: line {found[0].line} repeats {found[0].of}"
    if (tokens := check.tokens) is not None:
        yield f"  prompts in tokens: {tokens.prompts.described}; {tokens.prompts_left_out} left out"
        yield f"  answers in tokens: {tokens.answers.described}; {tokens.answers_cut} truncated"
    if check.templates:
        yield f"  rendered {described_renderings(check.templates)}"
    yield from (f"  {line}" for line in check.special_tokens.described())
