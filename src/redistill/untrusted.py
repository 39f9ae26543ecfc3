r"""Model output is untrusted text: what reaches a terminal or a page is stripped of what either would obey.

HTML is escaped by the report's templates; this is about characters.
"""

import re

_ESCAPE_SEQUENCE = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|(?:\x1b\]|\x9d)[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)")
# All of C0 but tab and line feed, DEL, C1, and the marks that turn the direction of text around.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def plain(text: str) -> str:
    r"""`text` without terminal escapes, control characters (tab and line feed stay) and turned writing directions.

    Half a surrogate pair, which nothing can print, becomes a replacement character.

    Example:
        >>> plain("\x1b[31mred\x1b[0m\x07 \u202ednah")
        'red dnah'
    """
    return _SURROGATE.sub("\ufffd", _CONTROL.sub("", _ESCAPE_SEQUENCE.sub("", text)))
