"""The self-test of a served teacher, by the command line: one line for each fault, before anything is loaded or written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from redistill.cli.main import main
from redistill.teachers.probe import TEXT, mean_difference
from tests.integration.test_served_teacher import recipe
from tests.servers.fake import Answer, ModelScript, Received, serving
from tests.worlds import GPT2, tiny_run, write_model

KEY = "q7w8e9r0t1y2u3i4"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    tiny_run(folder)
    return folder


def rejected(
    world: Path, capsys: pytest.CaptureFixture[str], script: Callable[[Received], Answer], code: int = 2, **teacher: Any
) -> str:
    """The only line of a run that ends in the self-test, before a model is loaded."""
    with serving(script) as server:
        path = recipe(world, server.url, teacher={"patience_s": 0.0, **teacher})
        capsys.readouterr()
        assert main(["train", str(path)]) == code
    told, *lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert told.startswith("teacher: training data")
    assert not (world / "out").exists()
    (line,) = lines
    assert line.startswith("redistill: ") and len(line) < 500
    return line


def test_another_model_name(world: Path, capsys) -> None:
    line = rejected(world, capsys, ModelScript(world / "teacher", name="other"))
    assert "the model is not served; set model to one of the names" in line


@pytest.mark.parametrize("name", ["a\tb", "x" * 300, "../../etc", "<script>", "'; DROP", "%s{0}", "teacher "])
def test_any_model_name_stays_in_the_body(world: Path, capsys, name: str) -> None:
    assert "the model is not served" in rejected(world, capsys, ModelScript(world / "teacher"), model=name)


def test_a_wrong_key(world: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    line = rejected(world, capsys, ModelScript(world / "teacher", key="another-key"), api_key_env="MY_KEY")
    assert "status 401 (Unauthorized): the server rejected the API key" in line and KEY not in line


def test_a_missing_key(world: Path, capsys) -> None:
    assert "needs an API key; set api_key_env" in rejected(world, capsys, ModelScript(world / "teacher", key=KEY))


def test_a_small_limit_of_log_probabilities(world: Path, capsys) -> None:
    line = rejected(world, capsys, ModelScript(world / "teacher", max_logprobs=15))
    assert "greater than max allowed: 15" in line and "start the server with --max-logprobs 16 or more" in line


def test_a_limit_of_log_probabilities_that_is_applied_silently(world: Path, capsys) -> None:
    def change(received: Received, reply: Any) -> Any:
        for choice in reply.get("choices", []):
            rows = choice["prompt_logprobs"]
            choice["prompt_logprobs"] = [row and dict(sorted(row.items(), key=lambda e: -e[1]["logprob"])[:5]) for row in rows]
        return reply

    line = rejected(world, capsys, ModelScript(world / "teacher", change=change))
    assert "tokens instead of 16" in line or "not listed at its position" in line


def test_too_few_positions(world: Path, capsys) -> None:
    line = rejected(world, capsys, ModelScript(world / "teacher", max_model_len=96))
    assert "prompt_tokens + response_tokens + 1 = 97: the model of" in line and "has 96 positions" in line


def test_another_tokenizer(world: Path, tmp_path: Path, capsys) -> None:
    from transformers import AutoTokenizer

    write_model(tmp_path / "other", GPT2, 1, vocab_size=600)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "other")
    tokenizer.add_tokens(["fox"])  # changes the ids of the probe text
    script = ModelScript(tmp_path / "other")
    script.tokenizer = tokenizer
    assert "its tokenizer is not that of the student" in rejected(world, capsys, script)


@pytest.mark.parametrize("text", ["<|im_end|>", "\x1b[2J<|im_end|>\nx"])
def test_a_token_with_another_text(world: Path, capsys, text: str) -> None:
    def change(received: Received, reply: Any) -> Any:
        for choice in reply.get("choices", []):
            for row, token in zip(choice["prompt_logprobs"], choice["prompt_token_ids"], strict=True):
                if token == 0 and row is not None:
                    row["0"]["decoded_token"] = text
        return reply

    line = rejected(world, capsys, ModelScript(world / "teacher", change=change))
    assert "id 0 is '<|im_end|>" in line and "'<|endoftext|>' in the student's tokenizer" in line and "\x1b" not in line


def test_log_probabilities_that_depend_on_the_temperature(world: Path, capsys) -> None:
    def change(received: Received, reply: Any) -> Any:
        for choice in reply.get("choices", []) if received.body else []:
            for row in choice["prompt_logprobs"][1:]:
                for entry in row.values():
                    entry["logprob"] *= received.body["temperature"]
        return reply

    assert "depend on the temperature" in rejected(world, capsys, ModelScript(world / "teacher", change=change))


def test_a_replica_with_other_weights(world: Path, capsys) -> None:
    with serving(ModelScript(world / "teacher")) as one, serving(ModelScript(world / "teacher", shift=3.0)) as two:
        path = recipe(world, [one.url, two.url])
        capsys.readouterr()
        assert main(["train", str(path)]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert (
        f"{two.url.split('/')[2]}: its log-probabilities differ by" in line
        and "serve the same model, or raise teacher.tolerance" in line
    )


def test_a_server_without_text_of_tokens_and_without_their_ids_is_accepted_with_a_note(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(received: Received, reply: Any) -> Any:
        for choice in reply.get("choices", []):
            del choice["prompt_token_ids"]
            for row in choice["prompt_logprobs"][1:]:
                for entry in row.values():
                    del entry["decoded_token"]
        return reply

    tiny_run(tmp_path)
    with serving(ModelScript(tmp_path / "teacher", change=change, max_model_len=None)) as server:
        capsys.readouterr()
        assert main(["train", str(recipe(tmp_path, server.url))]) == 0
    assert capsys.readouterr().err.count("its tokenizer was not compared with that of the student") == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_is_overloaded(world: Path, capsys, status: int) -> None:
    line = rejected(world, capsys, lambda received: Answer({"error": {"message": "busy"}}, status), code=75)
    assert f"status {status} (busy); gave up after 1 attempts" in line


def test_no_server(world: Path, capsys) -> None:
    path = recipe(world, "http://127.0.0.1:9/v1", teacher={"patience_s": 0.0})
    capsys.readouterr()
    assert main(["train", str(path)]) == 75
    assert "127.0.0.1:9: no valid reply (ConnectError" in capsys.readouterr().err.splitlines()[-1]


def test_the_probe_text_has_many_kinds_of_characters() -> None:
    assert any(c.isdigit() for c in TEXT) and not TEXT.isascii() and "\n\t" in TEXT and "        " in TEXT and "'" in TEXT


def test_the_difference_of_log_probabilities() -> None:
    assert mean_difference([-1.0, -2.0], [-1.5, -2.0]) == 0.25
    assert mean_difference([], []) == 0 and mean_difference([-1.0], []) == float("inf")
