"""Checks 1 to 8: templates, end tokens, targets and prompts of tokenised rows."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from redistill.contracts import Example
from redistill.data.forms import texts_of
from redistill.data.templates import described_renderings, prompt_before, render_prompt, rendering_of, turns_of
from redistill.data.tokenize import TokenizeConfig, tokenize_prompts, tokenize_training
from redistill.doctor.findings import Finding, Findings, NotExamined, quoted, some
from redistill.doctor.subject import Subject
from redistill.errors import DataError
from redistill.interfaces import Tokenizer
from redistill.policies.order import gold_sequence
from redistill.records import Conversation, Instruction, RawPrompt, Record
from redistill.runs.templates import exported_tokenizer

UNLIMITED = 1 << 40
"""A maximum length in tokens that is too large to truncate any text."""
NO_TARGET = frozenset({"no answer", "missing text", "empty text", "nothing to learn"})
"""Faults of `redistill data check` which mean that a row has no answer."""


def template(subject: Subject) -> Findings:
    """Check 1: evaluation and the exported model must use the prompts of training.

    The check fails if a row has other token ids in training than in evaluation or with the exported tokenizer. It also fails if
    the exported chat template differs. If the model has a chat template, but training uses the Alpaca template, this is a note.
    """
    config, tokenizer = subject.config.data.tokens, subject.tokenizer
    examples = subject.texts.examples
    found = []
    prompts = tokenize_prompts([example.record for example in examples], tokenizer, config)
    other = [example for example, prompt in zip(examples, prompts, strict=True) if example.prompt_ids != prompt]
    if other:
        found.append(
            Finding(
                what=f"evaluation gives {other[0].record.record_id} another prompt than training",
                measured=f"{len(other)} of {len(examples)} prompts differ",
                right="equal token ids",
                remedy="build both prompts with one template and one tokenizer (data.tokens.template)",
            )
        )
    exported, templates = subject.loaded.exported.tokenizer, subject.loaded.opened.data.templates
    expected = exported_tokenizer(tokenizer, templates).chat_template
    again, _ = tokenize_training([example.record for example in examples], exported, config, subject.config.seed)
    changed = [
        e for e, new in zip(examples, again, strict=False) if (e.token_ids, e.supervised) != (new.token_ids, new.supervised)
    ]
    if changed or len(again) != len(examples) or exported.chat_template != expected:
        found.append(
            Finding(
                what="the exported tokenizer differs from the tokenizer of training",
                measured=f"{len(changed)} of {len(examples)} rows have other token ids with the exported tokenizer"
                + ("" if exported.chat_template == expected else ", and its chat template differs"),
                right="equal token ids and equal chat templates",
                remedy="save the tokenizer again with save_pretrained, and load the student from that folder",
            )
        )
    if "alpaca" in templates and tokenizer.chat_template:
        found.append(
            Finding(
                what="the model has a chat template, and training uses the Alpaca template",
                measured=f"data.tokens.template = {config.template}: {described_renderings(templates)}",
                right="training with the template that the student will be used with",
                remedy="set data.tokens.template to chat, or use Alpaca prompts with the exported student",
                is_note=True,
            )
        )
    return found


def end_token(subject: Subject) -> Findings:
    """Check 2: answers must end with an end token.

    Without end tokens, the student does not learn to stop. The check fails if an answer that is not truncated has no end token,
    or if all answers are truncated. If only some answers are truncated, this is a note.
    """
    end_ids = subject.loaded.opened.models.end_ids
    limit, examples = subject.config.data.tokens.response_tokens, subject.texts.examples
    without = [example for example in examples if last_target(example) not in end_ids]
    cut = [example for example in without if len(example.token_ids) - len(example.prompt_ids) >= limit]
    whole = [example for example in without if len(example.token_ids) - len(example.prompt_ids) < limit]
    names = some([quoted(subject.tokenizer.decode([token])) for token in end_ids])
    if whole:
        last = quoted(subject.tokenizer.decode([last_target(whole[0])]))
        return [
            Finding(
                what=f"the targets of {whole[0].record.record_id} do not include an end token",
                measured=f"the last target of {len(whole)} of {len(examples)} rows is {last} or another token",
                right=f"an end token: {names}",
                remedy="change the chat template so that each answer ends with the end token, or set eos_token to the token "
                "that ends an answer in the template",
            )
        ]
    if not cut:
        return []
    every = len(cut) == len(examples)
    return [
        Finding(
            what="answers are truncated and have no end token",
            measured=f"{len(cut)} of {len(examples)} rows",
            right="answers that end with an end token" if every else "few truncated answers",
            remedy=f"raise data.tokens.response_tokens, which is {limit}",
            is_note=not every,
        )
    ]


def last_target(example: Example) -> int:
    """Return the id of an example's last target (a token that the student predicts)."""
    return max(zip(example.supervised, range(len(example.token_ids)), example.token_ids))[2]


def end_masked(subject: Subject) -> Findings:
    """Check 3: end tokens must not be masked when sequences are combined to a batch.

    The check fails if fewer end tokens are targets in the batch than in the sequences. It also fails if the attention mask
    of the batch leaves out tokens of the sequences. A cause may be a padding token with the id of an end token.
    """
    models = subject.loaded.opened.models
    sequences = [gold_sequence(example) for example in subject.texts.examples]
    targets = [token for each in sequences for token, is_target in zip(each.token_ids, each.supervised) if is_target]
    expected = sum(token in models.end_ids for token in targets)
    total = sum(len(sequence.token_ids) for sequence in sequences)
    batches = subject.loaded.batches(sequences)
    kept = sum(int(batch.target_N.eq(end).sum()) for batch in batches for end in models.end_ids)
    read = sum(int(batch.attention_mask_BT.sum()) for batch in batches)
    if kept == expected and read == total:
        return []
    same = " (padding has the id of an end token)" if models.pad_id in models.end_ids else ""
    return [
        Finding(
            what=f"end tokens are masked in a batch{same}",
            measured=f"{kept} end tokens are targets, and the attention mask includes {read} tokens",
            right=f"{expected} end tokens among the targets and {total} tokens in the mask",
            remedy="mask padding by position, not by id; or set pad_token to a token that is used for nothing else",
        )
    ]


def no_targets(subject: Subject) -> Findings:
    """Check 4: each row must have a target (a token that the student predicts).

    Training leaves out rows without a target. The check fails if there are such rows.
    """
    found = []
    for source in subject.texts.sources:
        bad = [row for row in source.unusable if row.fault in NO_TARGET]
        if bad:
            found.append(
                Finding(
                    what=f"{source.source} has rows without an answer",
                    measured=f"{len(bad)} of {source.rows + len(source.unusable)} rows, the first in line {bad[0].line}: "
                    f"{bad[0].reason}",
                    right="an answer in every row",
                    remedy="fix or remove the rows that redistill data check lists",
                )
            )
    if rejected := subject.texts.report.rejected:
        found.append(
            Finding(
                what=f"{rejected[0].record_id} has no target",
                measured=f"{len(rejected)} of {len(subject.texts.records)} examined rows; the first: {rejected[0].reason}",
                right="a target in every row",
                remedy="fix or remove the rows that redistill data check --tokenizer lists",
            )
        )
    return found


def prompt_targets(subject: Subject) -> Findings:
    """Check 5: the targets must begin where the prompt of evaluation ends.

    Targets are the tokens that the student predicts. The check fails if the text before the targets is not the prompt that
    evaluation uses. If the chat template inserts text between prompt and answer, this is a note.
    """
    examples, wrong = subject.texts.examples, []
    for example in examples:
        starts = [index for index, mark in enumerate(example.supervised) if mark and not example.supervised[index - 1]]
        prompts = answered_prompts(subject, example)
        before = [example.token_ids[:start] for start in starts]
        if not equal_texts(subject.tokenizer, before, prompts):
            wrong.append(example)
    if not wrong:
        return inserted_text(subject)
    marked = [token for token, mark in zip(wrong[0].token_ids, wrong[0].supervised) if mark]
    return [
        Finding(
            what=f"the targets of {wrong[0].record.record_id} are not its answers",
            measured=f"{len(wrong)} of {len(examples)} rows; the first one's targets begin with "
            f"{quoted(subject.tokenizer.decode(marked[:12]))}",
            right="targets that begin where the prompt of evaluation ends",
            remedy="fix the chat template so that a rendered conversation begins with its rendered prompt, or use "
            "template: alpaca",
        )
    ]


def inserted_text(subject: Subject) -> Findings:
    """Return a note if the chat template inserts text between prompt and answer."""
    for example in subject.texts.examples:
        end = len(example.prompt_ids) + example.supervised[len(example.prompt_ids) :].index(True)
        text = subject.tokenizer.decode(list(example.token_ids[end:]))
        answer = next((answer for answer in example.record.references if answer.strip() in text), None)
        before = text.partition(answer.strip())[0] if answer else ""
        if before.strip():
            return [
                Finding(
                    what=f"the template inserts text before the answer of {example.record.record_id}",
                    measured=f"{quoted(before)} is among the targets",
                    right="an answer that follows the prompt directly, unless the student should generate this text",
                    remedy="change the chat template so that the prompt includes this text if add_generation_prompt is set",
                    is_note=True,
                )
            ]
    return []


def answered_prompts(subject: Subject, example: Example) -> list[tuple[int, ...]]:
    """Return the prompts of the answers that are training targets, as token ids.

    The prompts are tokenised as in evaluation. With `supervise: every`, all answers of a conversation are targets. Otherwise
    only the last answer is a target.
    """
    record, config = example.record, subject.config.data.tokens
    turns = turns_of(record.prompt)
    asked = [k for k, turn in enumerate(turns) if turn.role == "assistant" and config.supervise == "every"]
    records = [replace(record, prompt=prompt) for prompt in (*(prompt_before(record.prompt, k) for k in asked), record.prompt)]
    return tokenize_prompts(records, subject.tokenizer, unlimited(config))


def equal_texts(tokenizer: Tokenizer, mine: Sequence[Sequence[int]], other: Sequence[Sequence[int]]) -> bool:
    """Return whether sequences decode to texts that differ at most in white space."""
    decoded = [["".join(tokenizer.decode(list(ids)).split()) for ids in texts] for texts in (mine, other)]
    return decoded[0] == decoded[1]


def unlimited(config: TokenizeConfig) -> TokenizeConfig:
    """Return a copy of the settings with length limits that truncate no text."""
    return replace(config, prompt_tokens=UNLIMITED, response_tokens=UNLIMITED)


def doubled_bos(subject: Subject) -> Findings:
    """Check 6: no sequence may begin with two BOS (beginning of sequence) tokens."""
    bos, config = subject.tokenizer.bos_token_id, subject.config.data.tokens
    prompts = tokenize_prompts(subject.texts.prompts, subject.tokenizer, config)
    ids = [*(example.token_ids for example in subject.texts.examples), *prompts]
    doubled = [each for each in ids if bos is not None and each[:2] == (bos, bos)]
    if not doubled:
        return []
    return [
        Finding(
            what="sequences begin with two BOS tokens",
            measured=f"{len(doubled)} of {len(ids)} begin with {quoted(subject.tokenizer.decode(list(doubled[0][:4])))}",
            right="at most one BOS token",
            remedy="remove the BOS token from the rows, or the second one from the chat template",
        )
    ]


def special_tokens(subject: Subject) -> Findings:
    """Check 7: the text of a row must not be encoded as special tokens.

    The check fails if the tokenizer encodes part of a row's text as a special token. If an answer contains the text of a
    special token, and it is encoded as ordinary text, this is a note.
    """
    known = special_names(subject.tokenizer)
    rows = [*subject.texts.records, *subject.texts.prompts]
    wrong = [(record, name) for record in rows if (name := injected(subject, record, known)) is not None]
    if not wrong:
        return special_text(rows, known)
    return [
        Finding(
            what=f"{wrong[0][0].record_id} has a special token in its text",
            measured=f"{len(wrong)} of {len(rows)} rows; {quoted(wrong[0][1])} is encoded as a special token",
            right="special tokens that come from the template only",
            remedy="remove the token from the text of the rows, or use template: alpaca, which encodes it as text",
        )
    ]


def special_text(rows: Sequence[Record], known: Mapping[str, int]) -> Findings:
    """Return a note if an answer contains the text of a special token.

    The note is for texts that the tokenizer encodes as ordinary text.
    """
    named = [(record, name) for record in rows for name in known if name and any(name in text for text in record.references)]
    if not named:
        return []
    return [
        Finding(
            what=f"the answer of {named[0][0].record_id} contains the text of a special token",
            measured=f"{quoted(named[0][1])} is encoded as ordinary text",
            right="answers without this text, unless the student should generate this text",
            remedy="remove this text from the answers",
            is_note=True,
        )
    ]


def special_names(tokenizer: Tokenizer) -> dict[str, int]:
    """Return a mapping from the text of each special token to its id."""
    added = {i: token for i, token in tokenizer.added_tokens_decoder.items() if getattr(token, "special", False)}
    ids = {*tokenizer.all_special_ids, *added}
    return {str(added.get(i, "") or tokenizer.decode([i])): i for i in ids}


def injected(subject: Subject, record: Record, known: Mapping[str, int]) -> str | None:
    """Return the text of a special token if a row's text is encoded as this token.

    Otherwise the result is None. `known` maps the texts of special tokens to their ids.

    A prompt that is used without a template is not examined, because it may contain special tokens on purpose. The answers are
    always examined.
    """
    is_verbatim = rendering_of(type(record.prompt), subject.config.data.tokens.template) == "verbatim"
    texts = (*(() if is_verbatim else texts_of(record.prompt)), *record.references)
    name = next((name for name in known if name and any(name in text for text in texts)), None)
    if name is None:
        return None
    neutral = replace(
        record,
        prompt=record.prompt if is_verbatim else without(record.prompt, known),
        references=tuple(cleaned(text, known) for text in record.references),
    )
    counts = [sum(i in known.values() for i in encoded(subject, each)) for each in (record, neutral)]
    return name if counts[0] > counts[1] else None


def encoded(subject: Subject, record: Record) -> tuple[int, ...]:
    """Return the token ids of a row's prompt, with its answer if the row has one.

    The result is empty for a row that training leaves out.
    """
    config = unlimited(subject.config.data.tokens)
    if record.references:
        try:
            return tokenize_training([record], subject.tokenizer, config, subject.config.seed)[0][0].token_ids
        except DataError:  # such a row is left out of training
            return ()
    return tokenize_prompts([record], subject.tokenizer, config)[0]


def without(prompt: Instruction | RawPrompt | Conversation, known: Mapping[str, int]) -> Instruction | RawPrompt | Conversation:
    """Return a copy of a prompt with "x" in place of each special token in its texts."""
    if isinstance(prompt, Instruction):
        asked, given, system = (cleaned(text, known) for text in (prompt.instruction, prompt.input, prompt.system))
        return Instruction(asked, given, system, tuple((cleaned(a, known), cleaned(b, known)) for a, b in prompt.history))
    if isinstance(prompt, RawPrompt):
        return RawPrompt(cleaned(prompt.text, known))
    return replace(prompt, turns=tuple(replace(turn, content=cleaned(turn.content, known)) for turn in prompt.turns))


def cleaned(text: str, known: Mapping[str, int]) -> str:
    """Return a text with "x" in place of each special token."""
    for name in filter(None, known):
        text = text.replace(name, "x")
    return text


def header(subject: Subject) -> Findings:
    """Check 8: truncation of a long prompt must keep its end.

    The end requests the answer, for example with the line "### Response:". The check fails if truncation removes it.
    """
    tokenizer, config = subject.tokenizer, subject.config.data.tokens
    rows = [record for record in (*subject.texts.records, *subject.texts.prompts) if requesting(record, config, tokenizer)]
    if not rows:
        raise NotExamined("all prompts are used verbatim, without a template")
    lost = []
    whole = tokenize_prompts(rows, tokenizer, unlimited(config))
    for record, prompt, uncut in zip(rows, tokenize_prompts(rows, tokenizer, config), whole, strict=True):
        kept = "".join(tokenizer.decode(list(prompt)).split())
        if prompt != uncut and not kept.endswith("".join(requesting(record, config, tokenizer).split())):
            lost.append(record)
    if not lost:
        return []
    return [
        Finding(
            what=f"truncation removes the header of the answer from the prompt of {lost[0].record_id}",
            measured=f"{len(lost)} of {len(rows)} prompts with prompt_tokens = {config.prompt_tokens}",
            right=f"prompts that end with {quoted(requesting(lost[0], config, tokenizer))}",
            remedy="raise data.tokens.prompt_tokens",
        )
    ]


def requesting(record: Record, config: TokenizeConfig, tokenizer: Tokenizer) -> str:
    """Return the end of a prompt, by which the template requests the answer.

    An example is the line "### Response:". The result is "" for a prompt that is used without a template.
    """
    if rendering_of(type(record.prompt), config.template) == "verbatim":
        return ""
    text = render_prompt(record.prompt, config.template, tokenizer, config.chat)
    given = turns_of(record.prompt)[-1].content
    last = (texts_of(record.prompt)[-1] or given).strip() if isinstance(record.prompt, Instruction) else given.strip()
    _, found, tail = text.rpartition(last)
    return tail if found and last else ""
