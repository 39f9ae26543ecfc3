r"""Sanitizes displayed text: removes terminal escapes, and masks secrets.

Model output, file names and library messages are untrusted.  Text that is printed, put on a page or stored in run.json is
therefore passed through `plain` or `redacted`.  HTML is escaped by the templates of the reports, not here.  Data and answers in
the .jsonl files of a run folder are stored verbatim.
"""

import contextlib
import os
import re
import shlex
import sys
import traceback
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

MASK = "***"

_ESCAPE_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # control sequences
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)"  # strings, such as titles and links
)
# C0 except tab and line feed, DEL, C1, marks that change the direction of text, and characters that are not visible: zero-width
# and format characters, fillers, variation selectors and tags, in which text can be hidden.
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e01ef]"
)
_SEPARATOR = re.compile("[\u2028\u2029]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")

_ASSIGNED = r"['\"]?\s?[=:]\s?['\"]?"
# Look-ahead is bounded, so that the time is linear in the length of the text.  In a pattern with a group, the
# group matches a prefix that is not masked.
_SECRETS = {
    what: re.compile(pattern)
    for what, pattern in {
        "a Hugging Face token": r"(?:hf_|api_org_)[A-Za-z0-9]{12,}",
        "an API key": (
            r"(?<![A-Za-z0-9])(?:sk-(?=[\w-]{0,200}\d)|(?:sk|rk|whsec)_(?:live_|test_)?(?=[A-Za-z0-9]{0,200}\d)|gsk_|xai-|pplx-"
            r"|nvapi-|r8_|dapi(?=[0-9a-f]{32})|SG\.(?=[\w-]{0,200}\.)|key-(?=[0-9a-f]{32})|wandb_v1_|lin_api_|ntn_|PMAK-|NRAK-"
            r"|sbp_|sntrys_|gl(?:c|sa)_|AGE-SECRET-KEY-|hv[bsr]\.|do[opr]_v1_|shp(?:at|ss|ca|pa)_|dckr_pat_|sq0(?:atp|csp)-)"
            r"[\w.+/=-]{16,}"
        ),
        "a GitHub token": r"(?:gh[opsur]_[A-Za-z0-9]{16,}|github_pat_\w{16,})",
        "a GitLab token": r"gl(?:pat|cbt|ptt|dt|rt|soat|ft|imt|agent)-[\w-]{16,}",
        "a Slack token": r"(?:xox[a-z]-|xapp-)[\w-]{10,}",
        "a webhook": (
            r"(?i)\b(https?://(?:hooks\.slack\.com/(?:services|workflows|triggers)/|(?:\w+\.)?discord(?:app)?\.com/api/(?:v\d+/)?"
            r"webhooks/|[\w.-]{1,100}\.webhook\.office\.com/|outlook\.office\.com/webhook/|hooks\.zapier\.com/hooks/"
            r"|chat\.googleapis\.com/v1/spaces/|maker\.ifttt\.com/trigger/|api\.telegram\.org/bot))(?!\*{3})[^\s'\"<>\\]{4,}"
        ),
        "a bot token": r"(?<![\w:])\d{8,10}:[\w-]{35}(?![\w-])",
        "an AWS key": r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}",
        "a Google key": r"(?:AIza[\w-]{30,}|ya29\.[\w-]{20,}|GOCSPX-[\w-]{20,}|(?<![\w/])1//0[\w-]{30,})",
        "a package index token": r"(?:pypi-[\w-]{40,}|npm_[A-Za-z0-9]{30,})",
        "a JSON web token": r"(?<![A-Za-z0-9])eyJ[\w-]{8,200}\.[\w-]{8,2000}\.[\w-]{8,}",
        "a private key": r"-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]{0,20}PRIVATE KEY-----|\Z)",
        "an Authorization header": r"(?i)\b((?:bearer|basic)\s{1,4})(?=[\w.~+/=-]{0,200}\d)[\w.~+/=-]{16,}",
        "user information in a URL": r"\b([A-Za-z][A-Za-z0-9+.-]{0,15}://)(?![^\s/?#@]{0,200}\*{3}@)[^\s/?#'\"<>\\]+(?=@)",
        "a signed query": (
            r"(?i)([?&;#](?:sig|signature|x-(?:amz|goog|oss|cos|ms)-(?:signature|credential|security-token)|awsaccesskeyid"
            r"|googleaccessid|sas|sastoken|jwt|hmac|policy|key-pair-id|code|pass|pwd|auth|[\w-]{0,30}(?:token|secret|password|key))"
            r"=)(?!\*{3})[^\s&;#'\"<>\\]{6,}"
        ),
        "an assigned secret": (
            r"(?i)(--[\w-]{0,30}(?:token|secret|password|key)\s['\"]?"
            r"|(?:token|secret|passw(?:or)?d|(?:api|access|account|shared)[_-]?(?:access)?[_-]?key)" + _ASSIGNED + ")"
            r"(?=[\w.~+/=-]{0,200}\d)[\w.~+/=-]{12,}"
        ),
        "an assigned access token": (
            r"(?i)((?:access|refresh|auth|session|bearer|client|private)[_-](?:token|secret)" + _ASSIGNED + r")"
            r"(?!\*{3})[^\s&;,#'\"<>\\{}\[\]()]{12,}"
        ),
    }.items()
}
# _SECRET_WORD matches a word in the name of an environment variable with a secret value.  _NOT_SECRET lists the last words of
# names that contain such a word, but whose values are not secret, such as TOKEN_TYPE.
_SECRET_WORD = re.compile(
    r".*(?:TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|APIKEY)|KEY|PASS|PASSPHRASE|PAT|AUTH|PWD|SIGNATURE|WEBHOOK"
)
_SECRET_OPTION = re.compile(r"--[\w-]{0,30}(?:token|secret|password|passphrase|key)", re.IGNORECASE)
_SECRET_END = re.compile(r"(?:TOKEN|KEY|SECRET|PASSWORD|PASSWD|PASS|PAT|CREDENTIALS?|AUTH)(?:_?\d+)?$", re.IGNORECASE)
_NOT_SECRET = {
    *("TYPE", "METHOD", "MODE", "NAME", "USER", "USERNAME", "HOST", "PORT", "ENABLED", "REGION", "PROVIDER", "LENGTH", "SIZE"),
    *("ALGORITHM", "VERSION", "TTL", "FORMAT", "EXPIRY", "LIMIT", "COUNT", "PARALLELISM", "BACKEND", "SOCK", "FILE", "PATH"),
    "DIR",
}
_USER_INFORMATION = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,15}://[^\s/?#@:]*:?([^\s/?#@]{8,})@")
_LEAST_LENGTH = 8


def plain(text: str) -> str:
    r"""Remove terminal escapes and control characters from `text`; mask secrets.

    Example:
        >>> plain("\x1b[31mred\x1b[0m\x07 \u202ednah https://me:pass@host/x")
        'red dnah https://***@host/x'
    """
    return redacted(printable(text))


def plain_line(text: str) -> str:
    r"""Make `text` one line, without terminal escapes, and with secrets masked.

    Control characters are removed as well (see `plain`).  Each sequence of white space is replaced by one space.

    Example:
        >>> plain_line("a\n\tb ")
        'a b'
    """
    return " ".join(plain(text).split())


def printable(text: str) -> str:
    r"""Remove terminal escapes, control characters and direction marks from `text`.

    Tab and line feed are kept.  A lone surrogate becomes a replacement character.

    Example:
        >>> printable("a\x1b]0;title\x07b\r\n")
        'ab\n'
    """
    text = _CONTROL.sub("", _ESCAPE_SEQUENCE.sub("", text))
    return _SURROGATE.sub("\ufffd", _SEPARATOR.sub("\n", text))


def redacted(text: str) -> str:
    """Mask every detected secret in `text`.

    Secrets are tokens of known forms, user information and signatures in URLs, webhooks, and secret values of environment
    variables.  The value of a variable is secret if the name of the variable contains TOKEN, KEY, SECRET, PASSWORD or a similar
    word. The value of such a variable is not masked if it is an existing path.

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


def redacted_command(arguments: Sequence[str]) -> str:
    """Join the arguments of a command for a shell, with secrets masked.

    Each argument is masked before it is quoted, since quotes can divide a secret.  The value of an option whose name ends in
    token, secret, password or key is masked as a whole.

    Example:
        >>> redacted_command(["redistill", "run", "a b.yaml", "--hub-token", "it's mine"])
        "redistill run 'a b.yaml' --hub-token '***'"
    """
    masked, is_value = [], False
    for argument in arguments:
        name, equals, value = argument.partition("=")
        is_secret = _SECRET_OPTION.fullmatch(name) is not None
        if is_value:
            masked.append(MASK)
        elif is_secret and equals:
            masked.append(f"{name}={MASK if value else ''}")
        else:
            masked.append(plain(argument))
        is_value = is_secret and not equals and not is_value
    return shlex.join(masked)


def secret_in(text: str) -> str | None:
    """Describe the first secret in `text`; return None if no secret is detected.

    Example:
        >>> secret_in("https://me:pass@host/model"), secret_in("openai-community/gpt2")
        ('user information in a URL', None)
    """
    found = (f"the value of ${name}" for name, value in _secrets_among(tuple(os.environ.items())).items() if value in text)
    return next(found, None) or next((what for what, pattern in _SECRETS.items() if pattern.search(text)), None)


def print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an exception with its full traceback, with secrets masked.

    The function is used as `sys.excepthook`.
    """
    sys.stderr.write(plain("".join(traceback.format_exception(kind, error, trace))))


@lru_cache(maxsize=8)
def _secrets_among(variables: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """Map the name of each variable that contains a secret to this secret."""
    found = {}
    for name, value in variables:
        if in_url := _USER_INFORMATION.search(value):
            found[name] = in_url[1]
        elif names_secret(name) and len(value) >= _LEAST_LENGTH and not _is_path(value):
            found[name] = value
    return found


@lru_cache(maxsize=4096)
def names_secret(name: str) -> bool:
    """Return whether an environment variable with this name contains a secret.

    The value of such a variable is masked if it has at least eight characters and is not a path.  The result is True in two
    cases:

    - The name ends in KEY, TOKEN or a similar word. There need not be an underscore before this word, as in DEPLOYKEY.
    - Underscores divide the name into words, one of which is TOKEN or a similar word. The last word must not be TYPE or a
      similar word, which marks a value that is not secret.
    """
    if name in {"PWD", "OLDPWD"}:
        return False
    words = [word.rstrip("0123456789") for word in name.upper().split("_")]
    found = _SECRET_END.search(name) or (words[-1] not in _NOT_SECRET and any(map(_SECRET_WORD.fullmatch, words)))
    return bool(found)


def _is_path(value: str) -> bool:
    with contextlib.suppress(OSError, RuntimeError):  # the name is too long, or the home folder of an unknown user
        return "/" in value and Path(value).expanduser().exists()
    return False
