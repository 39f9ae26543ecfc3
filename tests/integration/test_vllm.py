"""A served teacher against a real vLLM server; run with `pytest -m vllm`.

VLLM_URL is the address of the server, and VLLM_MODEL the folder of its model, served in float32 under the name "model" with
`--max-logprobs 64`. docs/served-teacher.md has a log.
"""

import copy
import os
from pathlib import Path

import pytest
import torch
import yaml

from redistill.cli.main import main
from redistill.config.run import encode_run
from redistill.contracts import GenerationRequest, Sampling, TokenSequence, items_of
from redistill.data.collate import collate
from redistill.generation.generate import generate
from redistill.models.load import ModelConfig, end_token_ids, load_model
from redistill.teachers.served import ServedTeacher, ServedTeacherConfig
from tests.integration.test_served_teacher import TOP_K, lines
from tests.worlds import rows, tiny_run

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif("VLLM_URL" not in os.environ or "VLLM_MODEL" not in os.environ, reason="needs a vLLM server"),
]


@pytest.fixture(scope="module")
def world():
    """The local model, its tokenizer, and the teacher that the server runs."""
    model, tokenizer = load_model(ModelConfig(model=os.environ["VLLM_MODEL"]))
    settings = ServedTeacherConfig(url=(os.environ["VLLM_URL"],), model="model", top_k=64)
    client = settings.connect(print)
    size, ends = model.get_output_embeddings().weight.shape[0], end_token_ids(model, tokenizer)
    teacher = ServedTeacher(
        settings,
        client,
        settings.examine(client, tokenizer, 128),
        vocabulary=size,
        end_ids=ends,
        device="cpu",
        count_text=lambda tokens: None,
        count=lambda requests, tokens: None,
    )
    return model, tokenizer, teacher


def test_the_64_most_probable_classes_are_those_of_the_local_model(world) -> None:
    model, tokenizer, teacher = world
    texts = [f"{row['instruction']} {row['output']}" for row in rows(8)]
    made = []
    for sample, ids in enumerate(map(tokenizer.encode, texts)):
        marks = (False,) + (True,) * (len(ids) - 1)
        made.append(TokenSequence(sample=sample, token_ids=tuple(ids), supervised=marks, origin="dataset"))
    teacher.prepare(made)
    batch = collate(items_of(made, "distillation"), pad_id=0)
    found = teacher.rows(batch)(slice(0, batch.num_sampled_rows))
    with torch.no_grad():
        logits_BTV = model(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT).logits
    logp_NV = logits_BTV.flatten(0, 1)[batch.position_N].float().log_softmax(-1)
    top = logp_NV.topk(64, dim=-1)
    torch.testing.assert_close(found.logp_NK, top.values, atol=2e-4, rtol=0)
    same = (found.class_NK.sort().values == top.indices.sort().values).all(-1)
    assert float(same.float().mean()) > 0.97  # classes with nearly equal probabilities may be exchanged at rank 64
    rest_N = logp_NV.scatter(-1, found.class_NK, -torch.inf).exp().sum(-1)
    torch.testing.assert_close(found.log_rest_N.exp(), rest_N, atol=1e-4, rtol=0)


def test_greedy_text_is_that_of_the_local_model(world) -> None:
    model, tokenizer, teacher = world
    ends = end_token_ids(model, tokenizer)
    requests = [
        GenerationRequest(
            prompt_ids=tuple(tokenizer.encode(row["instruction"])), max_new_tokens=24, seed=1, stream=("teacher-response", n)
        )
        for n, row in enumerate(rows(8))
    ]
    served = teacher.generate(requests, Sampling(temperature=0.0))
    assert served == generate(model, requests, Sampling(temperature=0.0), end_ids=ends, pad_id=0, batch_size=8, vocabulary=None)


def test_a_seed_gives_one_text_and_equal_prompts_give_different_texts(world) -> None:
    _, tokenizer, teacher = world
    prompt = tuple(tokenizer.encode("Once upon a time"))
    requests = [GenerationRequest(prompt_ids=prompt, max_new_tokens=16, seed=1, stream=("a", n)) for n in range(8)]
    first = teacher.generate(requests, Sampling())
    assert first == teacher.generate(requests, Sampling()) and len({text.token_ids for text in first}) == 8


def test_20_updates_have_the_divergences_of_the_local_teacher_on_the_same_classes(world, tmp_path: Path, monkeypatch) -> None:
    model, tokenizer, _ = world
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = 2
    student = type(model)(config)
    student.load_state_dict(model.state_dict(), strict=False)
    student.save_pretrained(tmp_path / "small")
    tokenizer.save_pretrained(tmp_path / "small")
    # With the usual 1e-3 the first updates amplify rounding: the divergences of the two runs differ by up to 1.3e-4.
    changes = {"training": {"updates": 20}, "optimiser": {"learning_rate": 1e-4}}
    made = tiny_run(tmp_path, "kd", student={"model": str(tmp_path / "small")}, **changes)
    tree = {name: value for name, value in encode_run(made).items() if name not in ("policy", "objective")}
    served = {"kind": "served", "url": os.environ["VLLM_URL"], "model": "model", "top_k": 64}
    local = {"kind": "my_teacher:TopK", "model": os.environ["VLLM_MODEL"], "k": 64}
    (tmp_path / "my_teacher.py").write_text(TOP_K)
    monkeypatch.chdir(tmp_path)
    found = {}
    for out, teacher in {"served": served, "local": local}.items():
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**tree, "teacher": teacher, "out": str(tmp_path / "out")}))
        assert main(["train", str(tmp_path / "recipe.yaml"), "--allow-code", "my_teacher"]) == 0
        found[out] = [line["divergence"] for line in lines(tmp_path)]
        (tmp_path / "out").rename(tmp_path / out)
    assert len(found["served"]) == 20
    assert found["served"] == pytest.approx(found["local"], abs=1e-4)
