r"""Sanitizes displayed text: removes terminal escapes, and masks secrets.

Model output, file names and library messages are untrusted.  Text that is printed, put on a page or stored in run.json is
therefore passed through `plain` or `redacted`.  HTML is escaped by the templates of the reports, not here.  Data and answers in
the .jsonl files of a run folder are stored verbatim.
"""

import contextlib
import os
import re
import sys
import traceback
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

MASK = "***"

_ESCAPE_SEQUENCE = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|(?:\x1b\]|\x9d)[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)")
# C0 except tab and line feed, DEL, C1, and the marks that change the direction of text.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")

# Look-ahead is bounded, so that the time is linear in the length of the text.  In a pattern with a group, the
# group matches a prefix that is not masked.
_SECRETS = {
    what: re.compile(pattern)
    for what, pattern in {
        "a Hugging Face token": r"(?:hf_|api_org_)[A-Za-z0-9]{12,}",
        "an API key": r"(?<![A-Za-z0-9])sk-(?=[\w-]{0,200}\d)[\w-]{16,}",
        "a GitHub token": r"(?:gh[opsur]_[A-Za-z0-9]{16,}|github_pat_\w{16,})",
        "a GitLab token": r"glpat-[\w-]{16,}",
        "a Slack token": r"xox[a-z]-[\w-]{10,}",
        "an AWS key": r"(?:AKIA|ASIA)[A-Z0-9]{16}",
        "a Google key": r"AIza[\w-]{30,}",
        "a package index token": r"(?:pypi-[\w-]{40,}|npm_[A-Za-z0-9]{30,})",
        "a JSON web token": r"(?<![A-Za-z0-9])eyJ[\w-]{8,200}\.[\w-]{8,2000}\.[\w-]{8,}",
        "a private key": r"-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]{0,20}PRIVATE KEY-----|\Z)",
        "an Authorization header": r"(?i)\b((?:bearer|basic)\s{1,4})(?=[\w.~+/=-]{0,200}\d)[\w.~+/=-]{16,}",
        "user information in a URL": r"\b([A-Za-z][A-Za-z0-9+.-]{0,15}://)(?![^\s/?#@]{0,200}\*{3}@)[^\s/?#'\"<>\\]+(?=@)",
        "an assigned secret": (
            r"(?i)(--[\w-]{0,30}(?:token|secret|password|key)\s['\"]?"
            r"|(?:token|secret|passw(?:or)?d|api[_-]?key|access[_-]?key)['\"]?\s?[=:]\s?['\"]?)"
            r"(?=[\w.~+/=-]{0,200}\d)[\w.~+/=-]{12,}"
        ),
    }.items()
}
# Names of environment variables with secret values, and the minimum length of a secret.
_SECRET_NAME = re.compile(r"(?:TOKEN|KEY|SECRET|PASSWORD|PASSWD|PASS|PAT|CREDENTIALS?|AUTH)(?:_?\d+)?$", re.IGNORECASE)
_USER_INFORMATION = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,15}://[^\s/?#@:]*:?([^\s/?#@]{8,})@")
_LEAST_LENGTH = 8


def plain(text: str) -> str:
    r"""Make `text` safe for display with `printable` and `redacted`.

    Example:
        >>> plain("\x1b[31mred\x1b[0m\x07 \u202ednah https://me:pass@host/x")
        'red dnah https://***@host/x'
    """
    return redacted(printable(text))


def printable(text: str) -> str:
    r"""Remove terminal escapes, control characters and direction marks from `text`.

    Tab and line feed are kept.  A lone surrogate becomes a replacement character.

    Example:
        >>> printable("a\x1b]0;title\x07b\r\n")
        'ab\n'
    """
    return _SURROGATE.sub("\ufffd", _CONTROL.sub("", _ESCAPE_SEQUENCE.sub("", text)))


def redacted(text: str) -> str:
    """Mask every detected secret in `text`.

    Secrets are tokens of known forms, user information in URLs, and secret values of environment variables.  The value of a
    variable is secret if its name ends in TOKEN, KEY, SECRET, PASSWORD or a similar word, and the value is not an existing
    path.

    Example:
        >>> redacted("HF_TOKEN=hf_abcdefghijklmnop redistill run mine.yaml")
        'HF_TOKEN=*** redistill run mine.yaml'
    """
    secrets = _secrets_among(tuple(os.environ.items())).values()
    spans = [found.span() for value in secrets for found in re.finditer(re.escape(value), text)]
    known = (found for pattern in _SECRETS.values() for found in pattern.finditer(text))
    spans += [(found.end(1) if found.re.groups else found.start(), found.end()) for found in known]
    shown, reached = [], 0
    # The spans refer to the original text, so that masking by one rule does not hide a secret from another rule.
    for start, end in sorted(spans):
        if start >= reached:
            shown += [text[reached:start], MASK]
        reached = max(reached, end)
    return "".join([*shown, text[reached:]])


def redacted_tree(value: Any) -> Any:
    """Return a copy of nested dicts and lists with secrets masked in texts and keys."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, dict):
        return {redacted(key) if isinstance(key, str) else key: redacted_tree(item) for key, item in value.items()}
    return [redacted_tree(item) for item in value] if isinstance(value, list | tuple) else value


def secret_in(text: str) -> str | None:
    """Describe the first secret in `text`; return None if no secret is detected.

    Example:
        >>> secret_in("https://me:pass@host/model"), secret_in("openai-community/gpt2")
        ('user information in a URL', None)
    """
    found = (f"the value of ${name}" for name, value in _secrets_among(tuple(os.environ.items())).items() if value in text)
    return next(found, None) or next((what for what, pattern in _SECRETS.items() if pattern.search(text)), None)


def print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the full traceback with secrets redacted; used as `sys.excepthook`."""
    sys.stderr.write(plain("".join(traceback.format_exception(kind, error, trace))))


@lru_cache(maxsize=8)
def _secrets_among(variables: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """Map the name of each variable that contains a secret to this secret."""
    found = {}
    for name, value in variables:
        if in_url := _USER_INFORMATION.search(value):
            found[name] = in_url[1]
        elif _SECRET_NAME.search(name) and len(value) >= _LEAST_LENGTH and not _is_path(value):
            found[name] = value
    return found


def _is_path(value: str) -> bool:
    with contextlib.suppress(OSError, RuntimeError):  # the name is too long, or the home folder of an unknown user
        return "/" in value and Path(value).expanduser().exists()
    return False
