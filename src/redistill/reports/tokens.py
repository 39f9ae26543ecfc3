"""The section "Divergence by token" of a report: token maps, and histograms.

A token map shows each token of a text with a number and a colour for its divergence.  The data are read from positions.jsonl
and revision-positions.jsonl, whose texts and numbers are untrusted.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from redistill.records import Json
from redistill.reports.drawing import COLOURS, INK, drawn, legend_above
from redistill.reports.folders import RunFolder, at, log_lines, mapping, number
from redistill.reports.logs import MAX_POSITION
from redistill.reports.thinning import Spaced
from redistill.storage.redaction import plain_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NUM_ANSWERS, NUM_REVISIONS = 6, 3
"""Numbers of answers and of corrections with token maps; a correction has two maps."""
MAX_TOKENS = 128
"""A map of a longer text shows this number of tokens."""
LEVELS = (0.1, 0.5, 1.0, 2.0)
"""Lower bounds, in nats, of the colours 1 to 4; lower values have colour 0."""
LARGEST = 1e6
"""Larger values than this are not shown."""
MAX_CHARACTERS = 60
"""A longer text of a token is cut off."""
MAX_LABEL = 40
"""A longer label of a histogram is cut off."""
_LEGEND_CHARACTERS = 32
"""Maximum length of all labels together for a legend in one row."""
EDGES: np.ndarray = 10.0 ** np.linspace(-4, 1.5, 23)
"""Edges of the bins of divergences, in nats."""
MAX_BARS = 30
"""A histogram of error positions has at most this number of bars."""
ANSWERS, REVISIONS, LOGGED = "positions.jsonl", "revision-positions.jsonl", "revisions.jsonl"
_MARKS = str.maketrans({"\n": "⏎", "\t": "⇥", "\r": ""})

Line = Mapping[str, Json]


@dataclass(frozen=True, kw_only=True)
class Token:
    """One token of a token map.

    Args:
        index: Position in the text, from 0.
        text: The text of the token, with visible signs for line breaks and tabs.
        divergence: Divergence between the models at the token, in nats; None if it was not finite.
        student, teacher: Probability of the token for each model; None if it was not recorded.
        level: Number of the colour, from 0 to 4.
        is_error: Whether SCRG replaced this token, or inserted it.
        in_phrase: Whether the token belongs to a phrase of the span loss.
    """

    index: int
    text: str
    divergence: float | None
    student: float | None
    teacher: float | None
    level: int
    is_error: bool
    in_phrase: bool


@dataclass(frozen=True, kw_only=True)
class TokenMap:
    """A text with the divergence at each token.

    Args:
        title: What the text is, such as "draft".
        tokens: At most `MAX_TOKENS` consecutive tokens of the text.
        num_omitted: Number of tokens that are not shown.
    """

    title: str
    tokens: Sequence[Token]
    num_omitted: int = 0

    @property
    def largest(self) -> list[Token]:
        """The shown tokens in descending order of divergence.

        Tokens without a divergence are last.
        """
        return sorted(self.tokens, key=lambda token: (token.divergence is None, -(token.divergence or 0.0), token.index))


@dataclass
class _Counts:
    """Sums over all tokens of several texts, in constant memory.

    Divergences are counted in bins of equal width on a logarithmic axis; smaller and larger values are in the outermost bins.
    """

    bins: np.ndarray = field(default_factory=lambda: np.zeros(len(EDGES) - 1))
    texts: int = 0
    tokens: int = 0
    total: float = 0.0
    large: int = 0

    def add(self, values: Iterable[float | None]) -> None:
        known = np.array([value for value in values if value is not None], dtype=np.float64)
        self.bins += np.histogram(np.clip(known, EDGES[0], EDGES[-1] * (1 - 1e-9)), EDGES)[0]
        self.texts += 1
        self.tokens += len(known)
        self.total += float(known.sum())
        self.large += int((known >= 1).sum())

    @property
    def mean(self) -> float | None:
        return self.total / self.tokens if self.tokens else None


def tokens_section(run: RunFolder, baseline: tuple[str, str, RunFolder] | None = None) -> dict[str, object] | None:
    """Return the variables of the template `report/tokens.html`.

    Args:
        run: The run folder.
        baseline: Labels of the run and of a baseline, and the folder of the baseline.  The histogram of divergences then shows
            the answers of both.

    Returns:
        None if the run has no divergences by token.  Otherwise a dict:

        - "answers": token maps of at most `NUM_ANSWERS` answers of the student to test prompts, each with its prompt;
        - "revisions": token maps of at most `NUM_REVISIONS` corrections, before and after, each with its prompt;
        - "charts": histograms;
        - "of_answers", "before" and "after": sums over the tokens of all answers, and of all texts before and after a
          correction.  Of corrected texts, only the tokens from the error token on are counted.

        Answers and corrections are evenly spaced over their files.

    Raises:
        CheckpointError: a file is damaged.
    """
    answers, revisions = Spaced[Line](), Spaced[Line]()
    of_answers, before, after = _Counts(), _Counts(), _Counts()
    for line in log_lines(run.path / ANSWERS):
        answers.add(line)
        of_answers.add(_numbers(line.get("forward_kl")))
    for line in log_lines(run.path / REVISIONS):
        revisions.add(line)
        position = _position(line)
        for counts, name in ((before, "before"), (after, "after")):
            counts.add(_numbers(at(line, name, "reverse_kl"))[position:])
    if not (answers.count or revisions.count):
        return None
    shown = revisions.items(NUM_REVISIONS)
    prompts = _prompts(run, shown)
    return {
        "answers": [_answer(run, line) for line in answers.items(NUM_ANSWERS)],
        "num_answers": answers.count,
        "revisions": [_revision(line, prompts.get(_key(line))) for line in shown],
        "num_revisions": revisions.count,
        "of_answers": of_answers,
        "before": before,
        "after": after,
        "charts": _charts(of_answers, before, after, baseline),
        "levels": LEVELS,
    }


def _answer(run: RunFolder, line: Line) -> dict[str, object]:
    """Return the token map of an answer, with the prompt."""
    dataset, prompt = str(line.get("dataset")), str(line.get("id"))
    lines = {} if run.student is None else run.student.answers.get(dataset, {}).get(str(line.get("seed")), {})
    shown = _token_map("student's answer", line, "forward_kl", error=None)
    return {"dataset": dataset, "id": prompt, "prompt": mapping(lines.get(prompt)).get("prompt"), "map": shown}


def position_chart(positions: Mapping[int, int]) -> dict[str, str | Markup] | None:
    """Draw a histogram of error positions; return None without positions.

    The result has the keys "title" and "svg".

    Args:
        positions: Number of corrections by index of the error token in the text, from 0 to `logs.MAX_POSITION`.
    """
    if not positions:
        return None
    title = f"Position of the error token, all {sum(positions.values()):,} logged corrections"
    return {"title": title, "svg": drawn(_positions(positions), title)}


def _prompts(run: RunFolder, shown: Sequence[Line]) -> dict[tuple[str, str], str]:
    """Return the prompts of corrections, by update and training example.

    The prompts are read from revisions.jsonl.
    """
    wanted = {_key(line) for line in shown}
    lines = log_lines(run.path / LOGGED) if wanted else ()
    return {_key(line): str(line.get("prompt") or "") for line in lines if _key(line) in wanted}


def _key(line: Line) -> tuple[str, str]:
    """Return the key of a correction: its update and its training example."""
    return str(line.get("step")), str(line.get("sample"))


def _revision(line: Line, prompt: str | None) -> dict[str, object]:
    """Return the token maps, the prompt, the update and the position of a correction."""
    position = _position(line)
    maps = [
        _token_map(title, mapping(line.get(name)), "reverse_kl", error=position)
        for name, title in (("before", "student's draft"), ("after", "revised text"))
    ]
    return {"step": line.get("step"), "sample": line.get("sample"), "position": position, "prompt": prompt, "maps": maps}


def _token_map(title: str, found: Line, name: str, error: int | None) -> TokenMap:
    texts, divergences = _texts(found), _numbers(found.get(name))
    student, teacher = (_numbers(found.get(f"{who}_logprob")) for who in ("student", "teacher"))
    phrases = {index for start, stop in _ranges(found.get("spans")) for index in range(start, min(stop, len(texts)))}
    # A correction behind the first tokens is shown from a few tokens before the error on.
    first = 0 if error is None or error < MAX_TOKENS // 2 else min(error - MAX_TOKENS // 4, max(0, len(texts) - MAX_TOKENS))
    shown = range(first, min(len(texts), first + MAX_TOKENS))
    tokens = [
        Token(
            index=index,
            text=_visible(texts[index]),
            divergence=_item(divergences, index),
            student=_probability(_item(student, index)),
            teacher=_probability(_item(teacher, index)),
            level=sum((_item(divergences, index) or 0.0) >= bound for bound in LEVELS),
            is_error=index == error,
            in_phrase=index in phrases,
        )
        for index in shown
    ]
    return TokenMap(title=title, tokens=tokens, num_omitted=len(texts) - len(tokens))


# --- histograms ---------------------------------------------------------------------------------------------------------


def _charts(
    answers: _Counts, before: _Counts, after: _Counts, baseline: tuple[str, str, RunFolder] | None
) -> list[dict[str, str | Markup]]:
    """Return a title and an <svg> element for each histogram that has data."""
    charts = []
    if answers.tokens:
        title, series = "Divergence by token of the student's answers, KL(teacher, student)", [("answers", answers)]
        if baseline is not None:
            own, other, folder = baseline
            theirs = _Counts()
            for line in log_lines(folder.path / ANSWERS):
                theirs.add(_numbers(line.get("forward_kl")))
            if theirs.tokens:
                series = [(plain_line(own)[:MAX_LABEL], answers), (plain_line(other)[:MAX_LABEL], theirs)]
        charts.append((title, drawn(_divergences(series), title)))
    if before.tokens or after.tokens:
        title = "Divergence by token from the error on, KL(student, teacher)"
        charts.append((title, drawn(_divergences([("draft", before), ("revised", after)]), title)))
    return [{"title": title, "svg": svg} for title, svg in charts]


def _divergences(series: Sequence[tuple[str, _Counts]]) -> Callable[["Axes"], None]:
    def paint(axes: "Axes") -> None:
        axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
        for (label, counts), colour, style in zip(series, COLOURS, ("-", "--")):
            fractions = counts.bins / max(1, counts.tokens)
            axes.stairs(fractions, EDGES, color=colour, label=label, fill=len(series) == 1, linestyle=style, linewidth=1.5)
        axes.set_xscale("log")
        axes.set_xlabel("nats")
        axes.set_ylabel("fraction of tokens")
        if len(series) > 1:
            names = sum(len(label) for label, _ in series)
            legend_above(axes, len(series) if names <= _LEGEND_CHARACTERS else 1)

    return paint


def _positions(positions: Mapping[int, int]) -> Callable[["Axes"], None]:
    largest = max(positions)
    width = 1 + largest // MAX_BARS  # tokens of a bar
    edges = np.arange(0, largest + width + 1, width)
    counts = np.histogram(list(positions), edges, weights=list(positions.values()))[0]

    def paint(axes: "Axes") -> None:
        axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
        axes.stairs(counts, edges - 0.5, color=COLOURS[0], fill=True)
        cut = f", {MAX_POSITION:,} and later ones in the last bar" if largest == MAX_POSITION else ""
        axes.set_xlabel(f"token of the text, from 0{cut}")
        axes.set_ylabel("corrections")
        axes.locator_params(axis="both", integer=True, nbins=6)

    return paint


# --- values of untrusted lines ------------------------------------------------------------------------------------------


def _texts(found: Json) -> list[str]:
    tokens = at(found, "tokens")
    return [str(token)[:MAX_CHARACTERS] for token in tokens] if isinstance(tokens, list) else []


def _visible(text: str) -> str:
    """Return the text of a token with signs for line breaks, tabs, and spaces that would be invisible."""
    return text.translate(_MARKS) if text.strip() else text.translate({ord(" "): "␣"} | _MARKS) or "∅"


def _numbers(values: Json) -> list[float | None]:
    """Return the numbers of a list.

    A value becomes None if it is not a number, or if its size is `LARGEST` or more.
    """
    found = map(number, values) if isinstance(values, list) else ()
    return [value if value is not None and abs(value) < LARGEST else None for value in found]


def _position(line: Line) -> int:
    """Return the index of the error token; 0 if the line has no valid one."""
    position = number(line.get("position"))
    return int(position) if position is not None and 0 <= position < 1e9 else 0


def _ranges(spans: Json) -> list[tuple[int, int]]:
    pairs = [[value for value in _numbers(span) if value is not None] for span in spans] if isinstance(spans, list) else []
    return [(int(pair[0]), int(pair[1])) for pair in pairs if len(pair) == 2 and pair[0] >= 0]


def _item(values: Sequence[float | None], index: int) -> float | None:
    return values[index] if index < len(values) else None


def _probability(logarithm: float | None) -> float | None:
    return None if logarithm is None else math.exp(min(logarithm, 0.0))
