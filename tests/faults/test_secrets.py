"""Secrets stay where they are: what redistill prints, writes or refuses holds none of them, and no setting is for one."""

import dataclasses
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml

from redistill.cli import main as cli
from redistill.config import run as config
from redistill.config.run import Run, encode_run, load_config
from redistill.errors import ConfigError, ModelError
from redistill.reports.compare import build_comparison
from redistill.reports.report import build_report
from redistill.runs.run import distill
from redistill.storage import redaction as untrusted
from redistill.storage.redaction import MASK, plain, redacted, redacted_command, redacted_tree, secret_in
from tests.reports.fabricated import write_method, write_run
from tests.worlds import tiny_run

ROOT = Path(__file__).parents[2]
BODY = "Q7w8E9r0T1y2U3i4O5p6A7s8D9f0G1h2J3k4"  # no secret of anybody's; put together here, so that no scanner takes it for one

# Those that are known by their form, wherever they stand.
KNOWN = {
    "hub": "hf_" + BODY[:34],
    "hub of an organisation": "api_org_" + BODY[:34],
    "model service": "sk-" + BODY,
    "model service, project": "sk-proj-" + BODY,
    "model service, other": "sk-ant-api03-" + BODY,
    "code host": "ghp_" + BODY,
    "code host, fine": "github_pat_" + BODY + "_" + BODY,
    "code host, other": "glpat-" + BODY[:20],
    "chat": "xoxb-" + "123456789012-" + BODY[:24],
    "cloud": "AKIA" + "Q7W8E9R0T1Y2U3I4",
    "cloud, other": "AIza" + BODY[:35],
    "package index": "pypi-" + BODY + BODY[:20],
    "package index, other": "npm_" + BODY,
    "web": f"eyJ{BODY[:20]}.eyJ{BODY}.{BODY[::-1]}",
    "private key": f"-----BEGIN RSA PRIVATE KEY-----\n{BODY}\n{BODY[::-1]}\n-----END RSA PRIVATE KEY-----",
}
# More forms, whose tokens contain other tests' delimiters or words.
FORMS = {
    "payment": "sk_live_" + BODY,
    "payment, restricted": "rk_test_" + BODY,
    "mail": "SG." + BODY[:22] + "." + BODY,
    "models, 1": "gsk_" + BODY,
    "models, 2": "xai-" + BODY,
    "models, 3": "nvapi-" + BODY,
    "models, 4": "r8_" + BODY,
    "models, 5": "pplx-" + BODY,
    "data": "dapi" + "0f1e2d3c4b5a6978" * 2,
    "vault": "hvs." + BODY,
    "shop": "shpat_" + "0f1e2d3c4b5a6978" * 2,
    "registry": "dckr_pat_" + BODY,
    "cloud": "dop_v1_" + "0f1e2d3c4b5a6978" * 4,
    "dashboards": "glsa_" + BODY,
    "runner": "glrt-" + BODY[:20],
    "application": "xapp-1-" + BODY,
    "sign-in": "ya29." + BODY,
    "sign-in, secret": "GOCSPX-" + BODY[:28],
    "bot": "123456789:" + BODY[:35],
    "encryption": "AGE-SECRET-KEY-1" + BODY.upper(),
}
QUERIES = (
    "https://host/f.bin?sv=2024&sig={}&se=2026",
    "https://bucket.host/k?X-Amz-Algorithm=A&X-Amz-Signature={}",
    "https://bucket.host/k?X-Amz-Security-Token={}&x=1",
    "https://bucket.host/k?X-Goog-Signature={}",
    "https://host/cb#access_token={}&state=1",
    "https://host/data.jsonl?access_token={}",
    "https://host/data.jsonl?a=1&api_key={}",
    "https://host/data.jsonl?token={}",
    "https://hooks.slack.com/services/T00/B00/{}",
    "https://discord.com/api/webhooks/123/{}",
    "https://ptb.discord.com/api/v10/webhooks/123/{}",
    "https://x.webhook.office.com/webhookb2/{}",
    "https://api.telegram.org/bot{}/sendMessage",
    "access_token={}",
    "refresh-token: {}",
    'client_secret="{}"',
    "AccountKey={}",
)


@pytest.mark.parametrize("token", FORMS.values(), ids=list(FORMS))
def test_a_token_of_another_form_is_masked(token: str) -> None:
    for around in ("{}", "x={}", "'{}'", "at {}, then"):
        assert token[-12:] not in redacted(around.format(token))
    assert secret_in(token)


@pytest.mark.parametrize("form", QUERIES)
@pytest.mark.parametrize("token", ["Q7w8E9r0T1y2U3i4O5p6", "correcthorsebattery", "p%2Fss%3Dw0rd%2Bx1"])
def test_signed_queries_webhooks_and_access_tokens_are_masked(form: str, token: str) -> None:
    if form == "AccountKey={}":  # such a value contains a digit, and no percent signs
        token = token.replace("%", "") + "1"
    shown = redacted(f"cannot read {form.format(token)} today")
    assert token not in shown and shown.startswith("cannot read ") and shown.endswith(" today")
    assert secret_in(form.format(token)) and redacted(shown) == shown


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN_READ",
        "db_password_prod",
        "SECRET_FOR_SYNC",
        "OPENAI_APIKEY",
        "GITHUBTOKEN2",
        "AUTH_HEADER",
        "SLACK_WEBHOOK_URL",
    ],
)
def test_a_variable_is_secret_by_a_part_of_its_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "correcthorsebattery")
    assert redacted("a correcthorsebattery b") == f"a {MASK} b"


@pytest.mark.parametrize(
    "name",
    ["TOKENIZERS_PARALLELISM", "GIT_AUTH_METHOD", "KEYBOARD_LAYOUT", "PATH_MAP", "SECRET_SANTA_ENABLED", "OLDPWD", "KEY_TYPE"],
)
def test_other_variables_are_not_secret(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "correcthorsebattery")
    assert redacted("a correcthorsebattery b") == "a correcthorsebattery b"


@pytest.mark.parametrize("option", ["--hub-token", "--api-key", "--PASSWORD", "--client_secret"])
@pytest.mark.parametrize("value", ["it's mine", "plainword", "a b", '"quoted"', "$HOME", "x\ny"])
def test_the_value_of_a_secret_option_is_masked_before_the_command_is_joined(option: str, value: str) -> None:
    for arguments in ([option, value, "--out", "c d"], [f"{option}={value}", "--out", "c d"]):
        shown = redacted_command(["redistill", "run", *arguments])
        assert value not in shown and shown.endswith("--out 'c d'")


def test_a_token_with_quotes_in_an_argument_is_masked() -> None:
    assert "s'x" not in redacted_command(["redistill", "run", "https://me:pas's'x@host/data", "method=kd"])


# Those that nothing but their place gives away.
OPAQUE = {
    "letters": "correcthorsebattery",
    "digits": "4815162342108",
    "mixed": BODY,
    "signs": "p%40ss~w0rd!x",
    "hex": "0f1e2d3c4b5a6978" * 2,
}
TOKENS = [*KNOWN.values(), *OPAQUE.values()]
VARIABLES = ("MY_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "SERVICE_AUTH")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An environment that holds the tokens that have no form of their own, each under another kind of name."""
    for name, token in zip(VARIABLES, OPAQUE.values(), strict=True):
        monkeypatch.setenv(name, token)
    yield


def held(text: str) -> list[str]:
    """The tokens that stand in a text, or the bodies of them."""
    return [token for token in TOKENS if any(part in text for part in token.split("\n") if not part.startswith("-----"))]


# --- one place ----------------------------------------------------------------------------------------------------------


def test_there_are_twenty() -> None:
    assert len(set(TOKENS)) == 20


@pytest.mark.parametrize("token", KNOWN.values(), ids=list(KNOWN))
@pytest.mark.parametrize(
    "around", ["{}", "x={}", "'{}'", "[{}]", "at {}, then", "(https://host/{}?a=b)", '{{"a": "{}"}}', "\x1b[1m{}\x1b[0m"]
)
def test_a_known_form_is_masked_wherever_it_stands(token: str, around: str) -> None:
    text = plain(around.format(token))
    assert held(text) == [] and MASK in text
    assert secret_in(token)


@pytest.mark.parametrize("token", [*OPAQUE.values(), *list(KNOWN.values())[:14]], ids=str)
def test_a_secret_value_of_the_environment_is_masked_wherever_it_stands(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_SERVICE_TOKEN", token)
    assert token not in redacted(f"a {token}b{token}") and secret_in(f"x{token}") is not None
    monkeypatch.delenv("SOME_SERVICE_TOKEN")
    assert redacted("xx") == "xx"


@pytest.mark.parametrize("token", [t for t in TOKENS if "\n" not in t], ids=str)
def test_user_information_in_a_url_is_masked_and_so_is_its_password_alone(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for url in (
        f"https://me:{token}@host/a",
        f"https://{token}@host/a",
        f"s3://me:{token}@host",
        f"git+https://me:{token}@host/x",
    ):
        assert held(redacted(f"fetch {url} failed")) == [] and "host" in redacted(url)
    monkeypatch.setenv("INDEX_URL", f"https://me:{token}@host/simple")
    assert held(redacted(f"password {token} refused")) == []


@pytest.mark.parametrize(
    "form", ["--hub-token {}", "--api-key={}", "token={}", "password: {}", "Authorization: Bearer {}", "API_KEY='{}'"]
)
def test_what_is_named_as_a_secret_is_masked(form: str) -> None:
    assert BODY not in redacted(f"redistill run mine.yaml {form.format(BODY)} --out here")
    assert redacted(f"run {form.format(BODY)} --out here").endswith("--out here")


def test_masking_twice_is_masking_once_and_a_mask_is_no_secret(environment: None) -> None:
    once = redacted(" ".join(f"https://me:{token}@host token={token} {token}" for token in TOKENS))
    assert redacted(once) == once and secret_in(once) is None and held(once) == []


def test_a_tree_is_masked_in_keys_and_values() -> None:
    token = KNOWN["hub"]
    assert redacted_tree({token: [token, {"a": (token, 1, None)}], "n": 1.5}) == {
        MASK: [MASK, {"a": [MASK, 1, None]}],
        "n": 1.5,
    }


@pytest.mark.parametrize(
    "path", sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("recipes/*.yaml")]), ids=lambda p: p.name
)
def test_ordinary_text_is_left_as_it_is(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert redacted(text) == text


@pytest.mark.parametrize(
    "text",
    [
        *("databricks/databricks-dolly-15k", "me@example.org", "https://host/a@v1.2", "git@github.com:a/b.git", "f00d" * 16),
        *(
            "prompt_tokens=256",
            "eos_token = '</s>'",
            "pad_token: <|endoftext|>",
            "the token w12 at place 3",
            "sk-learn",
            "a key: value",
        ),
        *("student_token: 'Paris'", "task-1234567890123456789", "basic training in 1234 steps", "password: yes", "xoxo, love"),
    ],
)
def test_what_only_looks_like_a_secret_is_left_as_it_is(text: str) -> None:
    assert redacted(text) == text and secret_in(text) is None


def test_a_path_in_a_variable_and_a_short_value_are_no_secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SSH_KEY", str(tmp_path))
    monkeypatch.setenv("PIN_KEY", "1234567")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "something-long")
    assert redacted(f"{tmp_path} 1234567 something-long") == f"{tmp_path} 1234567 something-long"


@pytest.mark.parametrize(
    "piece", ["sk-", "eyJ", "eyJa.", "a:", "https://", "-----BEGIN PRIVATE KEY", "token=", "bearer ", "hf_", "://@", "--"]
)
def test_no_text_makes_the_search_slow(piece: str) -> None:
    assert len(redacted(piece * 100_000)) >= 3  # hours, were the time to grow with the square of the length


# --- settings -----------------------------------------------------------------------------------------------------------


def least() -> dict[str, Any]:
    return {"name": "r", "method": "sft", "student": {"model": "s"}, "data": {"train": ["t.jsonl"]}}


@pytest.mark.parametrize("token", TOKENS, ids=[*KNOWN, *OPAQUE])
def test_a_recipe_that_holds_a_secret_is_refused_in_a_line_without_it(token: str, environment: None, tmp_path: Path) -> None:
    trees: list[dict[str, Any]] = [
        {**least(), "name": token},
        {**least(), "student": {"model": f"https://me:{token}@host/model"}},
        {**least(), "student": {"model": "s", "revision": token}},
        {**least(), "data": {"train": ["t.jsonl", f"a-{token}"], "tests": {"toy": token}}},
        {**least(), "hub_token": token},
        {**least(), token: 1},
        {**least(), "evaluation": {"seeds": token}},
    ]
    path = tmp_path / "mine.yaml"
    for tree in trees:
        path.write_text(yaml.safe_dump(tree))
        assert refused(path) == []
    path.write_text(yaml.safe_dump(least()))
    for override in (
        f"student.revision={token!r}",
        f"student.token={token!r}",
        f"name: {token}",
        f"name=[{token}",
        f"{token}=1",
    ):
        assert refused(path, override) == []
    for garbage in (f"name: [{token}\n", f"{token}: 1\n{token}: 2\n", f"name: !!int {token.split()[0]}\n", f"- {token}\n"):
        path.write_text(garbage)
        assert refused(path) == []


def refused(path: Path, *overrides: str) -> list[str]:
    """The tokens in the line with which a recipe is refused."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    assert "\n" not in str(caught.value)
    return held(str(caught.value))


def test_a_run_made_in_python_with_a_secret_is_described_without_it(environment: None) -> None:
    run = config.decode_run(least(), "here")
    run = dataclasses.replace(
        run, student=dataclasses.replace(run.student, model=f"https://me:{BODY}@host/s", revision=TOKENS[0])
    )
    told = str(encode_run(run))
    assert held(told) == [] and f"https://{MASK}@host/s" in told


def test_no_setting_is_for_a_secret() -> None:
    names = {name for cls in settings_of(Run, set()) for name in (f.name for f in dataclasses.fields(cls))}
    assert len(names) > 60
    suspicious = re.compile(r"token$|tokens?_|secret|password|passwd|api_?key|credential|auth")
    assert {name for name in names if suspicious.search(name)} == {
        "teacher_token",
        "api_key_env",
    }  # how a token of text is drawn; a name


def settings_of(cls: Any, seen: set[type]) -> set[type]:
    """The dataclasses that a type is made of."""
    for part in (cls, *get_args(cls)):
        if dataclasses.is_dataclass(part) and isinstance(part, type) and part not in seen:
            seen.add(part)
            for hint in get_type_hints(part, localns=dict(config.NAMES)).values():
                settings_of(hint, seen)
        elif get_args(part) and part is not cls:
            settings_of(part, seen)
    return seen


# --- what is written and printed ----------------------------------------------------------------------------------------


def test_a_run_with_secrets_in_its_command_and_environment_writes_and_prints_none(
    environment: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    told = [text for token in TOKENS for text in (f"--hub-token={token}", f"https://me:{token}@host/{token}")]
    monkeypatch.setattr("sys.argv", ["redistill", "run", "mine.yaml", *told])
    monkeypatch.setenv("INDEX_URL", f"https://me:{KNOWN['hub']}@host/simple")
    run = tiny_run(tmp_path, "kd", training={"updates": 1})
    distill(run)
    written = [path for path in run.folder.rglob("*") if path.is_file()]
    assert {"run.json", "report.html", "scores.json", "metrics.jsonl", "state.json"} <= {path.name for path in written}
    assert [path for path in written if held(path.read_bytes().decode("utf-8", "replace"))] == []
    assert MASK in (run.folder / "run.json").read_text(encoding="utf-8")
    assert held("".join(capfd.readouterr())) == []


@pytest.mark.parametrize("kind", [ModelError, RuntimeError])
def test_an_error_that_quotes_secrets_is_told_without_them(
    kind: type[Exception], environment: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fails(options: Any) -> None:
        raise kind(f"could not fetch https://me:{BODY}@host: {' '.join(TOKENS)}")

    monkeypatch.setattr("redistill.cli.commands.methods", fails)
    monkeypatch.setattr("sys.excepthook", sys.excepthook)
    try:
        cli.main(["methods"])
    except RuntimeError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    told = capfd.readouterr().err
    assert held(told) == [] and "could not fetch" in told


@pytest.mark.parametrize("token", TOKENS, ids=[*KNOWN, *OPAQUE])
def test_a_mistyped_command_is_refused_without_its_secrets(
    token: str, environment: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.excepthook", sys.excepthook)
    for arguments in (["run", "mine.yaml", f"--hub-token={token}"], ["run", f"--x={token}", "mine.yaml"], [token]):
        try:
            code: Any = cli.main(arguments)
        except SystemExit as left:  # argparse's own
            code = left.code
        assert code == 2
    assert held("".join(capfd.readouterr())) == []


def test_pages_and_tables_of_a_run_that_was_described_with_secrets_hold_none(environment: None, tmp_path: Path) -> None:
    text = " ".join(f"{token} https://me:{token}@host" for token in TOKENS)
    report = build_report(write_run(tmp_path / "run", "mine", text=text))
    outputs = [tmp_path / f"compare.{ending}" for ending in ("html", "md", "tex", "csv")]
    scores = {"toy": {10: [1.0, 2.0, 3.0]}}
    runs = [write_method(tmp_path / name, scores, name + text, change={"machine.cpu": text}) for name in ("a", "b")]
    build_comparison(runs, outputs)
    for path in (report, *outputs):
        assert held(path.read_text(encoding="utf-8")) == [], path


def test_a_traceback_is_told_without_secrets(environment: None, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        try:
            raise ValueError(f"first {TOKENS[:10]}")
        except ValueError as error:
            raise OSError(f"\x1b[31mcould not fetch https://me:{BODY}@host: {TOKENS[10:]}") from error
    except OSError as error:
        untrusted.print_traceback(type(error), error, error.__traceback__)
    told = capsys.readouterr().err
    assert held(told) == [] and "\x1b" not in told
    assert told.startswith("Traceback") and "ValueError: first" in told and "could not fetch https://***@host" in told
