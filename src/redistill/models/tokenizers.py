"""Checks of a loaded tokenizer: it encodes text, has an end token, and each of its ids is one token and one row of a model."""

from redistill.errors import ModelError, VocabularyError
from redistill.interfaces import Tokenizer
from redistill.models.reading import reading

_FIX = "fix its tokenizer_config.json, or download the model again"


def check_tokenizer(name: str, tokenizer: Tokenizer) -> None:
    """Check a tokenizer, and use its end token for padding if it has no pad token.

    Args:
        name: The model, for messages.
        tokenizer: Changed in place.

    Raises:
        ModelError: the tokenizer cannot encode and decode text, has no end token, or has two tokens with one id.
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
            raise ModelError(f"{name}: its tokenizer has two tokens with id {number}, {tokens[number]!r} and {token!r}; {_FIX}")
    if pad is None:
        tokenizer.pad_token = tokenizer.eos_token


def check_ids(name: str, tokenizer: Tokenizer, rows: int) -> None:
    """Check that every id of a tokenizer has a row in the embeddings of its model.

    Args:
        name: The model, for messages.
        tokenizer: Its tokenizer.
        rows: Number of rows.

    Raises:
        VocabularyError: the tokenizer has a larger id.
    """
    token, highest = max(tokenizer.get_vocab().items(), key=lambda item: item[1], default=("", -1))
    if highest >= rows:
        raise VocabularyError(
            f"{name}: its tokenizer has id {highest} ({token[:60]!r}), but the model has only {rows} rows; load the model's "
            "own tokenizer, or resize its embeddings (resize_token_embeddings) and save it again"
        )
