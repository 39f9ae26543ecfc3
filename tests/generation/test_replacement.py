"""Interleaved sampling: tokens of the student that the teacher ranks low are replaced while the text is generated."""

import pytest
import torch

from redistill import randomness
from redistill.contracts import GenerationRequest, Sampling
from redistill.errors import ConfigError
from redistill.generation.generate import generate
from redistill.policies import Interleaved
from redistill.vocab_pass import NUMBERS_PER_DRAW, sample_rows
from tests.generation.test_generate import END, SEED, VOCABULARY, exact_mixture, fits, requests, run, softened


@pytest.fixture
def teacher(tiny):
    """A teacher of another family, with more rows in its head than there are tokens."""
    return tiny("gpt2", vocab_size=VOCABULARY + 9).eval()


def replaced_by_a_loop(student, teacher, request, top_k):
    """The text of `Sampling(teacher_top_k=top_k)`, with both models run on the whole text for each token."""
    numbers = randomness.generator(request.seed, *request.stream)
    uniform = torch.from_numpy(numbers.random((request.max_new_tokens, 2, 1, NUMBERS_PER_DRAW)))
    text, counts = list(request.prompt_ids), [0, 0]
    for own, others in uniform:
        q_V, p_V = (model(torch.tensor([text])).logits[0, -1, :VOCABULARY].float().softmax(-1) for model in (student, teacher))
        token = int(sample_rows(q_V[None], own))
        is_replaced = token not in p_V.topk(top_k).indices.tolist()
        text.append(int(sample_rows(p_V[None], others)) if is_replaced else token)
        counts[is_replaced] += 1
        if text[-1] == END:
            break
    return tuple(text[len(request.prompt_ids) :]), counts


@torch.no_grad()
def test_tokens_that_the_teacher_ranks_low_are_replaced_by_its_own(tiny, teacher):
    student, wanted, top_k = tiny("llama").eval(), requests(), 8
    found = run(student, wanted, Sampling(teacher_top_k=top_k), vocabulary=VOCABULARY, teacher=teacher.eval())
    expected = [replaced_by_a_loop(student, teacher, request, top_k) for request in wanted]
    assert [generation.token_ids for generation in found] == [text for text, _ in expected]
    kept, changed = map(sum, zip(*(counts for _, counts in expected), strict=True))
    assert kept > 5 and changed > 5
    one_by_one = [run(student, [r], Sampling(teacher_top_k=top_k), vocabulary=VOCABULARY, teacher=teacher)[0] for r in wanted]
    assert one_by_one == found


def test_with_all_tokens_allowed_the_text_is_sampled_from_the_student(tiny, teacher):
    """20,000 first tokens; with one token allowed, the frequencies differ."""
    student, prompt = softened(tiny("llama")), (5, 9)
    wanted = [GenerationRequest(prompt_ids=prompt, max_new_tokens=1, seed=SEED, stream=("a", i)) for i in range(20_000)]
    options = {"end_ids": (), "vocabulary": VOCABULARY, "teacher": teacher, "batch_size": len(wanted)}
    expected = exact_mixture(student, teacher, prompt, 0.0, Sampling())
    for top_k, is_own in ((VOCABULARY, True), (1, False)):
        drawn = [g.token_ids[0] for g in run(student, wanted, Sampling(teacher_top_k=top_k), **options)]
        assert (fits(drawn, expected) > 0.001) == is_own


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (Sampling(teacher_top_k=-1), "sampling.teacher_top_k = -1: must be >= 0"),
        (
            Sampling(teacher_top_k=2, temperature=0.0),
            r"sampling.temperature = 0: must be > 0 for text with tokens of",
        ),
        (Sampling(teacher_top_k=2, teacher_share=0.5), "sampling.teacher_top_k: cannot be combined with teacher_share"),
    ],
)
def test_replacement_has_settings_that_fit(tiny, sampling, message):
    with pytest.raises(ConfigError, match=message):
        generate(tiny("llama"), requests(), sampling, end_ids=(END,), pad_id=0, batch_size=4, teacher=tiny("llama"))


def test_a_policy_needs_at_least_one_token_of_the_teacher():
    with pytest.raises(ConfigError, match=r"teacher_top_k = 0: must be >= 1; SKD uses 25"):
        Interleaved(teacher_top_k=0)
