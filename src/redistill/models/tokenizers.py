"""Checks of tokenizers.

A tokenizer must encode and decode text and have an end token. No two of its tokens may have the same id, and each id must have
a row in the embeddings of the model.
"""

import contextlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path

from redistill.errors import ModelError, VocabularyError
from redistill.interfaces import Tokenizer
from redistill.models.reading import reading
from redistill.storage.json_text import JsonError, parse_json

_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json")
_FIX = "fix its tokenizer_config.json, or download the model again"


def check_sentencepiece(name: str, source: Mapping[str, str]) -> None:
    """Check that the packages for a SentencePiece tokenizer are installed.

    A model that has a SentencePiece file but no tokenizer.json, such as OpenLLaMA, needs these packages. The error message
    of transformers does not name the packages.

    Args:
        name: Name of the model for error messages.
        source: Arguments for `from_pretrained`.

    Raises:
        ModelError: a package is missing.
    """
    with contextlib.suppress(ModuleNotFoundError):  # raised if the package google, which contains protobuf, is missing
        if importlib.util.find_spec("sentencepiece") and importlib.util.find_spec("google.protobuf"):
            return
    folder = Path(source["pretrained_model_name_or_path"])
    if (folder / "tokenizer.model").is_file() and not (folder / "tokenizer.json").is_file():
        raise ModelError(
            f"{name}: its tokenizer is a SentencePiece file (tokenizer.model), which needs the packages sentencepiece and "
            "protobuf; pip install 'redistill[sentencepiece]'"
        )


def damaged_file(source: Mapping[str, str]) -> str:
    """Return a phrase for an error message that names the damaged tokenizer file.

    If no damaged file is found, the phrase names at most two of the tokenizer's files.

    Args:
        source: Arguments for `from_pretrained`.
    """
    if "gguf_file" in source:
        return "its tokenizer"
    folder = Path(source["pretrained_model_name_or_path"])
    present = [folder / file for file in _FILES if (folder / file).is_file()]
    for path in present:
        try:
            if not isinstance(parse_json(path.read_bytes(), any_number=True, unique_keys=False), dict):
                return f"{path.name} is not a JSON object, so its tokenizer"
        except (OSError, JsonError):
            return f"{path.name} is not valid JSON, so its tokenizer"
    return f"its tokenizer ({', '.join(path.name for path in present[:2])})" if present else "its tokenizer"


def check_tokenizer(name: str, tokenizer: Tokenizer) -> None:
    """Check a tokenizer, and use its end token for padding if it has no pad token.

    Args:
        name: Name of the model for error messages.
        tokenizer: The tokenizer, which is changed in place.

    Raises:
        ModelError: the tokenizer cannot encode and decode text, has no end token, or has two tokens with the same id.
    """
    with reading(f"{name}: its tokenizer", _FIX):
        vocabulary = tokenizer.get_vocab()
        ids = list(tokenizer("a b")["input_ids"])
        tokenizer.decode(ids)
        end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    if end is None:
        raise ModelError(f"{name}: its tokenizer has no end token; set eos_token in tokenizer_config.json")
    tokens: dict[int, str] = {}
    for token, number in vocabulary.items():
        if tokens.setdefault(number, token) != token:
            both = f"{tokens[number][:60]!r} and {token[:60]!r}"
            raise ModelError(f"{name}: its tokenizer has two tokens with id {number}, {both}; fix its tokenizer.json")
    if pad is None:
        tokenizer.pad_token = tokenizer.eos_token


def check_ids(name: str, tokenizer: Tokenizer, rows: int) -> None:
    """Check that every id of a tokenizer has a row in the embeddings of its model.

    Args:
        name: Name of the model for error messages.
        tokenizer: The tokenizer of the model.
        rows: Number of rows of the embeddings.

    Raises:
        VocabularyError: the tokenizer has an id that is not below `rows`.
    """
    token, highest = max(tokenizer.get_vocab().items(), key=lambda item: item[1], default=("", -1))
    if highest >= rows:
        raise VocabularyError(
            f"{name}: its tokenizer has id {highest} ({token[:60]!r}), but its embeddings have only {rows} rows; load the "
            "model's own tokenizer, or resize the embeddings (resize_token_embeddings) and save the model again"
        )


def compatibility_warnings(teacher_tokenizer: Tokenizer, student_tokenizer: Tokenizer, *, chat: bool = True) -> list[str]:
    """Return warnings about differences between tokenizers with the same vocabulary.

    The differences may reduce the quality of the student. Chat templates are compared only if `chat` is True.
    """
    warnings = []
    if teacher_tokenizer.eos_token_id != student_tokenizer.eos_token_id:
        warnings.append(
            f"the teacher's end token is {teacher_tokenizer.eos_token!r} and the student's {student_tokenizer.eos_token!r}: "
            "the student learns the teacher's end token; set eos_token in one of the tokenizers if this is not intended"
        )
    if chat and teacher_tokenizer.chat_template != student_tokenizer.chat_template:
        warnings.append(
            "the teacher and the student have different chat templates: both models get prompts in the student's template; "
            "a teacher trained on its own template may give worse answers"
        )
    return warnings
