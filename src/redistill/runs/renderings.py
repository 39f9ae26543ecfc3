"""Reports the templates with which the rows of each data set are rendered."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from redistill.data.chat import chat_notes
from redistill.data.templates import checked_renderings, described_renderings
from redistill.data.tokenize import TokenizeConfig
from redistill.interfaces import Tokenizer
from redistill.records import Record


def trained_templates(templates: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Return the number of rows of all training files by template.

    Args:
        templates: Number of rows by template, for each data set; the names of training files begin with "train".
    """
    return dict(sum((Counter(found) for role, found in templates.items() if role.startswith("train")), Counter[str]()))


def report_all_templates(
    prompts: Mapping[str, Mapping[str, int]], tokenizer: Tokenizer, tokens: TokenizeConfig, report: Callable[[str], None]
) -> dict[str, dict[str, int]]:
    """Report the templates of all data sets.

    `prompts` maps the name of each data set to its numbers of rows by type of prompt.  The result maps the name of each data
    set to its numbers of rows by template.
    """
    for note in chat_notes(tokenizer, tokens.chat):
        report(f"note: {note}")
    found: dict[str, dict[str, int]] = {}
    for role, kinds in prompts.items():  # the training files come first
        trained = trained_templates(found) if role.startswith("test ") else None
        found[role] = report_templates(role, kinds, tokenizer, tokens, report, trained)
    return found


def report_templates(
    role: str,
    prompts: Mapping[str, int],
    tokenizer: Tokenizer,
    tokens: TokenizeConfig,
    report: Callable[[str], None],
    trained: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Report the templates with which the rows of a data set are rendered.

    Args:
        role: Name of the data set in messages: "train", "validation" or "test <name>".
        prompts: Number of rows by the type of their prompt, as in `ReadReport`.
        tokenizer: The tokenizer of the student.
        tokens: The settings of the template.
        report: Function that is called with one line of text, and with a note on test rows whose template no training row has.
        trained: Number of training rows by template; None if `role` is not a test set, or if there was no training.

    Returns:
        Number of rows by template: "chat", "alpaca" or "verbatim".

    Raises:
        ConfigError: there are conversations, and the tokenizer has no chat template.
    """
    counts = checked_renderings(prompts, tokens.template, tokenizer, role)
    report(f"{role}: rendered {described_renderings(counts)}")
    if trained and (other := {name: count for name, count in counts.items() if name not in trained}):
        only = "chat" if "chat" in trained else "alpaca"
        report(
            f"note: {role}: {described_renderings(other)}, unlike all training rows; data.tokens.template: {only} renders all "
            "rows with one template"
        )
    return counts


def report_tests(
    tests: Mapping[str, Sequence[Record]], tokenizer: Tokenizer, tokens: TokenizeConfig, report: Callable[[str], None]
) -> None:
    """Report the templates with which the rows of the test sets are rendered.

    Args:
        tests: Records by name of the test set.
        tokenizer: The tokenizer of the model.
        tokens: The template, with its arguments and date.
        report: Function that is called with lines of text.

    Raises:
        ConfigError: there are conversations, and the tokenizer has no chat template.
    """
    for note in chat_notes(tokenizer, tokens.chat):
        report(f"note: {note}")
    for name, records in tests.items():
        prompts = Counter(type(record.prompt).__name__ for record in records)
        report_templates(f"test {name}", prompts, tokenizer, tokens, report)
