"""Division of texts in any script into words.

The tokenizer of the package `rouge-score` finds words in Latin script only.
"""

import functools
import re
import unicodedata
from typing import Literal

_UNSPACED = re.compile(  # scripts that are written without spaces between words
    "[\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han, kana
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]"  # Thai and Lao, Burmese, Khmer
)
_Kind = Literal["letter", "single", "mark", "ignored", "other"]


def words(text: str) -> list[str]:
    """Divide a text in any script into lower-case words.

    The text is first converted to the normal form NFKC, and invisible format characters are removed.  A word is a sequence
    of letters, digits and combining marks.  In scripts that are written without spaces (Chinese characters, kana, Thai,
    Lao, Burmese, Khmer), each character with its combining marks is a word.  Punctuation and symbols separate words.

    Source: own.

    Args:
        text: The text; it may be empty.

    Returns:
        The words in order; empty if the text has neither letters nor digits.

    Example:
        >>> words("Привет, мир!"), words("हिन्दी 42"), words("我爱GPT。")
        (['привет', 'мир'], ['हिन्दी', '42'], ['我', '爱', 'gpt'])
    """
    found: list[str] = []
    before: _Kind = "other"
    for char in unicodedata.normalize("NFKC", text).casefold():
        kind = _kind(char)
        if kind == "ignored":
            continue
        if kind == "single" or (kind == "letter" and before != "letter"):
            found.append(char)
        elif kind == "letter" or (kind == "mark" and before != "other"):
            found[-1] += char
        before = before if kind == "mark" else kind  # a mark belongs to the character before it
    return found


@functools.lru_cache(maxsize=1 << 16)
def _kind(char: str) -> _Kind:
    category = unicodedata.category(char)
    if category[0] == "M":
        return "mark"
    if category == "Cf":  # joiners and marks of direction: they are invisible, and writers may omit them
        return "ignored"
    if category[0] not in "LN":
        return "other"
    return "single" if _UNSPACED.match(char) else "letter"
