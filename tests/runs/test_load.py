"""Loading data and models from a configuration, and their manifest."""

import dataclasses
from pathlib import Path

import pytest
import torch

from redistill.config.run import Run
from redistill.config.sections import DataConfig
from redistill.data import reader, tokenize
from redistill.data.tokenize import TokenizeConfig
from redistill.errors import ConfigError, DataError, VocabularyError
from redistill.runs.load import load_data, load_tests
from redistill.runs.models import load_models
from redistill.storage import files
from tests.tokenizers import llama_like
from tests.worlds import LLAMA, gpt2_tokenizer, rows, tiny_run, write_model, write_rows


@pytest.fixture(scope="module")
def tokenizer():
    return gpt2_tokenizer()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("assembly")
    tiny_run(folder)
    return folder


# --- data ---------------------------------------------------------------------------------------------------------------


def data(folder: Path, **fields) -> DataConfig:
    fields = {"train": (write_rows(folder / "train.jsonl", rows(10)),), "validation_rows": 3, **fields}
    return DataConfig(**fields)


def load(config, tokenizer, said=None, rejected=None, seed=1):
    return load_data(config, tokenizer, seed, rejected=rejected, report=(said if said is not None else []).append)


def instructions(records):
    return [record.prompt.instruction for record in records]


def test_the_first_rows_are_held_out_for_validation(tmp_path, tokenizer):
    found = load(data(tmp_path), tokenizer)
    assert instructions(found.validation) == [row["instruction"] for row in rows(3)]
    assert instructions(e.record for e in found.train) == [row["instruction"] for row in rows(10)[3:]]
    assert [e.record for e in found.validation_examples] == list(found.validation)


def test_with_a_validation_file_all_training_rows_are_used(tmp_path, tokenizer):
    validation = write_rows(tmp_path / "validation.jsonl", rows(6, 50))
    found = load(data(tmp_path, validation=validation), tokenizer)
    assert len(found.train) == 10 and instructions(found.validation) == [row["instruction"] for row in rows(3, 50)]


def test_max_train_rows_limits_the_rows_after_the_held_out_ones(tmp_path, tokenizer):
    found = load(data(tmp_path, max_train_rows=2), tokenizer)
    assert instructions(e.record for e in found.train) == [row["instruction"] for row in rows(2, 3)]
    assert len(found.validation) == 3


@pytest.mark.parametrize(("count", "notes"), [(5, 0), (6, 1)])
def test_validation_with_most_of_the_training_rows_is_noted(tmp_path, tokenizer, count, notes):
    said = []
    load(data(tmp_path, validation_rows=count), tokenizer, said)
    note = f"note: validation has {count} of 10 training rows; data.validation_rows sets this number"
    assert said.count(note) == notes


def test_several_sources_are_one_training_set_and_each_is_described(tmp_path, tokenizer):
    more = write_rows(tmp_path / "more.jsonl", rows(4, 70))
    config = data(tmp_path)
    config = data(tmp_path, train=(*config.train, more))
    said = []
    found = load(config, tokenizer, said)
    assert len(found.train) == 10 + 4 - 3
    assert found.manifest["train 2"] == {
        "source": more,
        "form": "instruction/input/output, 4 rows",
        "rows": 4,
        "rejected": 0,
        "sha256": files.digest(Path(more)),
    }
    assert said[1] == f"train 2: {more}: instruction/input/output, 4 rows"
    assert said[-1] == "train: 11 examples; validation: 3"


def test_prompts_that_are_too_long_are_dropped_and_counted(tmp_path, tokenizer):
    long = {"instruction": "Where is the cat? " * 60, "output": "Here."}
    path = write_rows(tmp_path / "mixed.jsonl", [*rows(6), long])
    said = []
    found = load(data(tmp_path, train=(path,)), tokenizer, said)
    assert found.manifest["kept"] == {
        "train": 3, "dropped": 1, "too long": 1, "nothing to learn": 0, "in a test set": 0, "validation": 3
    }  # fmt: skip
    assert said[-1] == "train: 3 examples (1 dropped: 1 too long); validation: 3"


def test_a_prompt_that_is_too_long_is_listed_and_not_counted_as_bad(tmp_path, tokenizer):
    path = write_rows(tmp_path / "mixed.jsonl", [*rows(6), {"instruction": "Where is the cat? " * 60, "output": "Here."}])
    rejected = tmp_path / "rejected.jsonl"
    for _ in range(2):  # a run that is resumed lists it once
        load(data(tmp_path, train=(path,), max_bad_rows=0), tokenizer, rejected=rejected)
    (row,) = files.read_lines(rejected)
    assert (row["source"], row["line"]) == (path, 7) and "prompt_tokens = 256" in row["reason"]


NEVER = {"messages": [{"role": "user", "content": "REFUSE"}, {"role": "assistant", "content": "No."}]}


@pytest.fixture
def chatty():
    """A tokenizer whose chat template rejects one message."""
    tokenizer = gpt2_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.content == 'REFUSE' %}{{ raise_exception('not that') }}{% endif %}"
        "<{{ m.role }}>{{ m.content }}</>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    return tokenizer


def test_a_row_that_the_chat_template_rejects_is_a_bad_row(tmp_path, chatty):
    path = write_rows(tmp_path / "mixed.jsonl", [NEVER, *rows(6), NEVER])
    rejected, said = tmp_path / "rejected.jsonl", []
    config = data(tmp_path, train=(path,), tokens=TokenizeConfig(template="chat"), max_bad_rows=2)
    found = load(config, chatty, said, rejected)
    listed = files.read_lines(rejected)
    assert {(row["source"], row["line"]) for row in listed} == {(path, 1), (path, 8)}
    assert all("not that" in row["reason"] for row in listed)
    assert instructions(found.validation) == [row["instruction"] for row in rows(3)], "the first that can be used"
    assert found.manifest["kept"]["nothing to learn"] == 2
    assert said[-1] == "train: 3 examples (2 dropped: 2 nothing to learn); validation: 3"
    with pytest.raises(DataError, match=r"mixed\.jsonl:1: .*more than 1 rows are unusable .*raise max_bad_rows"):
        load(dataclasses.replace(config, max_bad_rows=1), chatty, rejected=rejected)


def test_rows_with_the_prompt_of_a_test_row_are_removed(tmp_path, tokenizer):
    test = write_rows(tmp_path / "test.jsonl", [{**row, "output": "Else."} for row in (*rows(2), *rows(1, 50), *rows(1, 9))])
    validation = write_rows(tmp_path / "validation.jsonl", rows(4, 50))
    said = []
    found = load(data(tmp_path, validation=validation, tests={"mine": test}), tokenizer, said)
    assert instructions(e.record for e in found.train) == [row["instruction"] for row in rows(7, 2)]
    assert instructions(found.validation) == [row["instruction"] for row in rows(3, 51)]
    kept = found.manifest["kept"]
    assert (kept["in a test set"], kept["dropped"], kept["validation in a test set"]) == (3, 3, 1)
    assert "removed, since a test set has the same prompt: 3 training rows, 1 validation rows" in said


def test_the_same_instruction_with_another_input_is_another_prompt(tmp_path, tokenizer):
    row = rows(1)[0]
    test = write_rows(tmp_path / "test.jsonl", [{**row, "input": "the moon"}])
    assert len(load(data(tmp_path, tests={"mine": test}), tokenizer).train) == 7
    test = write_rows(tmp_path / "test.jsonl", [{**row, "input": f" {row['input']}\n"}])
    assert len(load(data(tmp_path, tests={"mine": test}), tokenizer).train) == 6


def test_training_data_without_rows_outside_the_test_sets_is_rejected(tmp_path, tokenizer):
    config = data(tmp_path, validation=write_rows(tmp_path / "validation.jsonl", rows(2, 50)))
    with pytest.raises(DataError, match="train: the prompt of every row is also in a test set"):
        load(dataclasses.replace(config, tests={"mine": config.train[0]}), tokenizer)


def test_tests_are_read_and_their_files_hashed(tmp_path, tokenizer):
    path = write_rows(tmp_path / "test.jsonl", rows(2, 90))
    config = data(tmp_path, tests={"mine": path})
    found = load(config, tokenizer)
    assert found.manifest["test mine"] == {"source": path, "rows": 2, "rejected": 0, "sha256": files.digest(Path(path))}
    assert load_tests(config, lambda line: None) == found.tests


def test_too_few_rows_to_hold_out_are_rejected(tmp_path, tokenizer):
    with pytest.raises(ConfigError, match=r"the training set has only 10 rows; lower data\.validation_rows"):
        load(data(tmp_path, validation_rows=10), tokenizer)


def test_unusable_rows_are_listed_by_source(tmp_path, tokenizer):
    bad = write_rows(tmp_path / "bad.jsonl", [*rows(5), {"instruction": "no answer"}])
    worse = write_rows(tmp_path / "worse.jsonl", [{"instruction": ""}, *rows(5)])
    rejected = tmp_path / "rejected.jsonl"
    found = load(data(tmp_path, train=(bad, worse), max_bad_rows=1), tokenizer, rejected=rejected)
    assert [(row["source"], row["line"]) for row in files.read_lines(rejected)] == [(bad, 6), (worse, 1)]
    assert (found.manifest["train 1"]["rejected"], found.manifest["train 2"]["rejected"]) == (1, 1)
    with pytest.raises(DataError, match=r"bad\.jsonl:6: 'output' is missing"):
        load(data(tmp_path, train=(bad, worse), max_bad_rows=0), tokenizer)
    assert len(load(data(tmp_path, train=(bad, worse)), tokenizer).train) == 7, "a single bad row is put up with"


# --- the cache ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of its own, which is used for data of any size."""
    monkeypatch.setenv("REDISTILL_CACHE", str(tmp_path / "cache"))
    for module in (reader, tokenize):
        monkeypatch.setattr(module, "CACHED_BYTES", 1)
    return tmp_path / "cache"


@pytest.fixture
def no_work(monkeypatch):
    """A function after which reading and tokenizing rows fails."""

    surveyed = reader._surveyed

    def fail(*_, **__):
        raise AssertionError("it is in the cache")

    def forbid():  # test sets are read at every start
        monkeypatch.setattr(
            reader, "_surveyed", lambda opened, *_: fail() if "test" not in opened.stem else surveyed(opened, *_)
        )
        monkeypatch.setattr(tokenize, "_tokenized", fail)

    return forbid


def everything(found):
    return (
        [(e, e.record) for e in found.train], [(e, e.record) for e in found.validation_examples], list(found.validation),
        {name: list(records) for name, records in found.tests.items()}, found.manifest,
    )  # fmt: skip


def mixed_rows(folder, tokens=None, **fields):
    made = [*rows(9), {"instruction": "no answer"}, rows(9)[4], {"instruction": "Where is the cat? " * 60, "output": "Here."}]
    path = write_rows(folder / "mixed.jsonl", made)
    test = write_rows(folder / "test.jsonl", rows(1))
    return data(folder, train=(path,), tests={"mine": test}, tokens=tokens or TokenizeConfig(), **fields)


@pytest.mark.parametrize("template", ["alpaca", "chat"])
def test_a_second_start_does_not_tokenize_and_finds_the_same(tmp_path, chatty, cache, no_work, monkeypatch, template):
    config, said = mixed_rows(tmp_path, TokenizeConfig(template=template)), ([], [], [])
    rejected = [tmp_path / f"rejected-{number}.jsonl" for number in range(3)]
    found = []
    for number in range(3):
        if number == 2:
            no_work()
        options = {"rejected": rejected[number], "report": said[number].append}
        with monkeypatch.context() as patch:
            if number == 0:
                patch.setenv("REDISTILL_CACHE", str(tmp_path / "other"))
                patch.setattr(reader, "CACHED_BYTES", 1 << 40)
                patch.setattr(tokenize, "CACHED_BYTES", 1 << 40)
            found.append(load_data(config, chatty, 1, **options))
    assert not (tmp_path / "other").exists() and len(list(cache.glob("*/*/manifest.json"))) >= 3
    assert everything(found[0]) == everything(found[1]) == everything(found[2])
    assert said[0] == said[1] == said[2]
    assert files.read_lines(rejected[0]) == files.read_lines(rejected[1]) == files.read_lines(rejected[2])
    assert found[0].train.digest() == found[2].train.digest()


CHANGES = {
    "prompt_tokens": lambda tokens, tokenizer: (dataclasses.replace(tokens, prompt_tokens=200), tokenizer, 1),
    "response_tokens": lambda tokens, tokenizer: (dataclasses.replace(tokens, response_tokens=5), tokenizer, 1),
    "template": lambda tokens, tokenizer: (dataclasses.replace(tokens, template="chat"), tokenizer, 1),
    "supervise": lambda tokens, tokenizer: (dataclasses.replace(tokens, supervise="every"), tokenizer, 1),
    "reference": lambda tokens, tokenizer: (dataclasses.replace(tokens, reference="longest"), tokenizer, 1),
    "tokenizer": lambda tokens, tokenizer: (tokens, llama_like(), 1),
    "seed": lambda tokens, tokenizer: (dataclasses.replace(tokens, reference="random"), tokenizer, 2),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_the_tokens_depend_on_is_in_the_key_of_the_cache(tmp_path, chatty, cache, change):
    made = [{**row, "output": [row["output"], "A much longer answer than that one, as it seems.", "b"]} for row in rows(12)]
    config = data(tmp_path, train=(write_rows(tmp_path / "several.jsonl", made),))
    tokens, tokenizer, seed = change(config.tokens, chatty)
    load(config, chatty, seed=1)
    load(dataclasses.replace(config, tokens=dataclasses.replace(config.tokens, reference="random")), chatty, seed=1)
    changed = dataclasses.replace(config, tokens=tokens)
    found = everything(load(changed, tokenizer, seed=seed))
    assert found == everything(load(changed, tokenizer, seed=seed))
    for path in sorted(cache.glob("*/*/manifest.json")):
        path.unlink()
    assert found == everything(load(changed, tokenizer, seed=seed))


def test_a_changed_chat_template_or_data_file_is_read_again(tmp_path, chatty, cache):
    config = data(tmp_path, tokens=TokenizeConfig(template="chat"))
    before = load(config, chatty)
    chatty.chat_template = chatty.chat_template.replace("</>", "</end>")
    assert load(config, chatty).train[0].token_ids != before.train[0].token_ids
    write_rows(Path(config.train[0]), rows(10, 40))
    assert instructions(e.record for e in load(config, chatty).train) == [row["instruction"] for row in rows(7, 43)]
    assert instructions(e.record for e in before.train) == [row["instruction"] for row in rows(7, 3)]


def test_a_template_that_prints_the_date_is_rendered_with_the_date_of_the_run(tmp_path, chatty, cache):
    chatty.chat_template = "{{ strftime_now('%Y-%m-%d %H:%M') }}" + chatty.chat_template
    days = ["2026-11-29T23:59:00", "2026-11-30T00:01:00"]
    configs = [data(tmp_path, tokens=TokenizeConfig(template="chat", template_date=day)) for day in days]
    for config, day in zip(configs, days):
        said = []
        texts = [chatty.decode(load(config, chatty, said).train[0].prompt_ids) for _ in range(2)]
        assert texts[0] == texts[1] and texts[0].startswith(day[:16].replace("T", " "))
        assert f"note: the chat template prints the date; in this run it is {day} (data.tokens.template_date)" in said


# --- special tokens -----------------------------------------------------------------------------------------------------


def test_special_tokens_in_the_text_are_reported_and_stand_in_the_manifest(tmp_path, chatty):
    made = [{"messages": [{"role": "user", "content": "a<|endoftext|>"}, {"role": "assistant", "content": "b"}]}, *rows(5)]
    train = write_rows(tmp_path / "special.jsonl", [*rows(3), *made, {"prompt": "c<|endoftext|>", "completion": "d"}])
    test = write_rows(tmp_path / "test.jsonl", [{"prompt": "e<|endoftext|>", "completion": "f"}])
    said = []
    found = load(data(tmp_path, train=(train,), tests={"mine": test}), chatty, said)
    kept = {"kept": {"<|endoftext|>": 1}, "kept_rows": 1}
    as_text = {"as_text": {"<|endoftext|>": 1}, "as_text_rows": 1}
    assert found.manifest["special tokens"] == {"train": {**kept, **as_text}, "test mine": kept}
    assert "train: special tokens in the text of 1 row are encoded as plain text: <|endoftext|> (1)" in said
    assert "test mine: special tokens in 1 row of raw text are encoded as special tokens: <|endoftext|> (1)" in said
    assert "special tokens" not in load(data(tmp_path), chatty).manifest


# --- models -------------------------------------------------------------------------------------------------------------


def models(config: Run):
    return load_models(config)


def test_a_separate_student_and_a_teacher_share_their_vocabulary(world):
    found = models(tiny_run(world))
    assert found.vocabulary == len(found.tokenizer) and not found.notes
    assert found.end_ids == (found.tokenizer.eos_token_id,) and found.pad_id == found.tokenizer.pad_token_id
    student, teacher = (sum(p.numel() for p in model.parameters()) for model in (found.student, found.teacher))
    assert found.manifest["student"]["parameters"] == student and found.manifest["teacher"]["parameters"] == teacher


def test_a_student_of_teacher_layers(world):
    config = tiny_run(world, student={"model": "teacher", "initialise": {"layers": [0, 2]}})
    found = models(config)
    assert found.student.config.num_hidden_layers == 2
    own, theirs = found.student.model.layers[1].mlp.up_proj.weight, found.teacher.model.layers[2].mlp.up_proj.weight
    assert torch.equal(own, theirs) and own.data_ptr() != theirs.data_ptr()


def test_layers_of_a_separate_student(world):
    found = models(tiny_run(world, student={"initialise": {"layers": 1}}))
    assert found.student.config.num_hidden_layers == 1


def test_without_a_teacher_none_is_loaded(world):
    found = models(tiny_run(world, "sft", teacher=None))
    assert found.teacher is None and "teacher" not in found.manifest and found.vocabulary == len(found.tokenizer)


def test_the_student_is_trained_in_float32_by_default(world):
    assert models(tiny_run(world)).student.dtype == torch.float32
    assert models(tiny_run(world, student={"dtype": "bfloat16"})).student.dtype == torch.bfloat16


def test_a_padded_head_is_cut_to_the_shared_vocabulary(world, tmp_path):
    size = len(gpt2_tokenizer())
    padded = write_model(tmp_path / "padded", LLAMA, 5, vocab_size=size + 28)
    found = models(tiny_run(world, teacher={"model": padded}))
    assert found.vocabulary == size
    assert any(f"{size + 28} (teacher) and {size} (student)" in note for note in found.notes)


def test_different_token_ids_are_rejected(world, tmp_path):
    other = write_model(tmp_path / "other", LLAMA, 5)
    llama_like().save_pretrained(other)
    with pytest.raises(
        VocabularyError, match="id 0 is '<unk>' in the teacher and '<|endoftext|>' in the student".replace("|", r"\|")
    ):
        models(tiny_run(world, teacher={"model": other}))


def test_gradient_checkpointing_reaches_the_student(world):
    found = models(tiny_run(world, student={"gradient_checkpointing": True}))
    recomputes = [
        any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
        for model in (found.student, found.teacher)
    ]
    assert recomputes == [True, False]
