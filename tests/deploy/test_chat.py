"""Chat: one prompt a line from a pipe, a conversation on a terminal, answers without terminal escapes."""

import io
import json
import signal

import pytest

from redistill.cli import chat_loop
from redistill.cli.main import main
from redistill.deploy.chat import ChatConfig, Speaker, load_speakers
from redistill.errors import ConfigError, DataError, Interrupted
from redistill.records import Turn
from redistill.runs.run import train_student
from tests.deploy.models import write_kind
from tests.worlds import tiny_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = tiny_run(tmp_path_factory.mktemp("world"), "kd", training={"updates": 2, "batch_size": 2, "log_every": 1})
    train_student(config)
    return config.folder


@pytest.fixture
def model(tmp_path):
    return str(write_kind(tmp_path / "model", "qwen2"))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Echo:
    """A model that answers with the number of messages and the last prompt; it is interrupted at `stop`."""

    def __init__(self, label: str = "echo", stop: BaseException | None = None) -> None:
        self.label, self.stop = label, stop

    def answer(self, turns, config, emit):
        if turns[-1].content == "stop":
            raise self.stop
        text = f"{len(turns)} {turns[-1].content}\x1b[31m"
        emit(text)
        return text


def said(monkeypatch, capsys, text: str, *speakers, terminal: bool = False, options: dict | None = None) -> str:
    """The output of a chat with the given lines as standard input."""
    monkeypatch.setattr("sys.stdin", (Terminal if terminal else io.StringIO)(text))
    found = type("Options", (), {"json": False, **(options or {})})
    chat_loop.chat_loop(found, list(speakers), ChatConfig())
    return capsys.readouterr().out


def test_each_line_of_a_pipe_is_a_prompt_of_its_own(monkeypatch, capsys):
    out = said(monkeypatch, capsys, "first\n\n  second \n/quit\nthird\n", Echo())
    assert out == "1 first\n1 second\n"


def test_a_terminal_has_one_conversation_until_it_is_reset(monkeypatch, capsys):
    out = said(monkeypatch, capsys, "a\nb\n/reset\nc\n", Echo(), terminal=True)
    assert [line.removeprefix("> ").lstrip("> ") for line in out.splitlines() if line.strip("> ")] == ["1 a", "3 b", "1 c"]


def test_several_models_are_named(monkeypatch, capsys):
    out = said(monkeypatch, capsys, "a\n", Echo("student"), Echo("teacher\x1b[0m"))
    assert out == "student: 1 a\nteacher: 1 a\n"


def test_ctrl_c_ends_a_chat_on_a_terminal_quietly(monkeypatch, capsys):
    said(monkeypatch, capsys, "a\nstop\nb\n", Echo(stop=Interrupted(signal.SIGINT)), terminal=True)
    with pytest.raises(Interrupted):
        said(monkeypatch, capsys, "stop\n", Echo(stop=Interrupted(signal.SIGTERM)), terminal=True)
    with pytest.raises(Interrupted):
        said(monkeypatch, capsys, "stop\n", Echo(stop=Interrupted(signal.SIGINT)))


def test_a_prompt_that_cannot_be_answered_fails_a_pipe_after_the_other_prompts(monkeypatch, capsys):
    with pytest.raises(DataError, match="1 answers could not be generated"):
        said(monkeypatch, capsys, "a\nstop\nb\n", Echo(stop=DataError("too long")))
    found = capsys.readouterr()
    assert found.out.split() == ["1", "a", "1", "b"] and "too long" in found.err
    assert "3 b" in said(monkeypatch, capsys, "a\nstop\nb\n", Echo(stop=DataError("too long")), terminal=True)


def test_json_is_one_document(run, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("Where is the cat?\nWhere is the owl?\n"))
    assert main(["chat", str(run), "--teacher", "--max-tokens", "4", "--temperature", "0", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [exchange["prompt"] for exchange in document["exchanges"]] == ["Where is the cat?", "Where is the owl?"]
    assert all(exchange["answers"].keys() == {"student", "teacher"} for exchange in document["exchanges"])


def test_streamed_parts_are_the_answer_and_depend_on_the_seed(model):
    (speaker,) = load_speakers(model, None, "auto")
    turns, parts = (Turn("user", "Where is the cat?"),), []

    def answer(**changes) -> str:
        parts.clear()
        text = speaker.answer(turns, ChatConfig(**{"max_tokens": 12, "temperature": 1.0} | changes), parts.append)
        assert "".join(parts).strip() == text
        return text

    assert answer(seed=1) == answer(seed=1) != answer(seed=2)
    assert answer(temperature=0.0, seed=1) == answer(temperature=0.0, seed=2)


def test_prompts_have_the_template_of_the_model(run, model, monkeypatch):
    prompts = []

    def recorded(self, records):
        prompts.append(self.config.template)
        return [DataError("enough")]

    monkeypatch.setattr("redistill.data.sequences.SequenceEncoder.prompts", recorded)
    for name in (str(run), model):
        (speaker,) = load_speakers(name, None, "auto")
        with pytest.raises(DataError, match="enough"):
            speaker.answer((Turn("user", "a"),), ChatConfig(), print)
    assert prompts == ["alpaca", "chat"]


def test_a_conversation_that_is_too_long_is_rejected(model):
    (speaker,) = load_speakers(model, None, "auto")
    with pytest.raises(DataError, match="the model has 256 positions; /reset"):
        speaker.answer((Turn("user", "cat " * 300),), ChatConfig(), print)


def test_a_teacher_of_a_model_without_a_run_must_be_named(model):
    with pytest.raises(ConfigError, match="--teacher MODEL"):
        load_speakers(model, "", "auto")
    labels = [speaker.label for speaker in load_speakers(model, model, "auto")]
    assert labels == ["student", "teacher"]


@pytest.mark.parametrize(("name", "value"), [("temperature", -1.0), ("top_p", 0.0), ("top_p", 1.5), ("max_tokens", 0)])
def test_values_out_of_range_are_rejected(name, value):
    with pytest.raises(ConfigError, match=f"{name} = "):
        ChatConfig(**{name: value})


def test_a_speaker_is_what_the_loop_needs():
    assert {"label", "answer"} <= {*vars(Speaker), *Speaker.__dataclass_fields__}
