"""The sampler: a response depends on its stream and its prompt only."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers import NoRepeatNGramLogitsProcessor

from redistill import randomness
from redistill.contracts import GenerationRequest, Sampling
from redistill.errors import ConfigError
from redistill.generation.generate import _masses, generate, probabilities
from redistill.generation.ngrams import NgramBan
from redistill.models.initialise import fresh_model
from redistill.models.recompute import checkpoint_activations
from redistill.vocab_pass import NUMBERS_PER_DRAW, sample_rows
from tests.worlds import LLAMA

END = 2
SEED = 10
VOCABULARY = 40


def requests(count=16, budget=12):
    generator = np.random.default_rng(0)
    return [
        GenerationRequest(
            prompt_ids=tuple(generator.integers(3, VOCABULARY, generator.integers(1, 12)).tolist()),
            max_new_tokens=int(generator.integers(1, budget + 1)),
            seed=SEED,
            stream=("response", 1, i),
        )
        for i in range(count)
    ]


def run(model, requests, sampling=Sampling(), batch_size=16, end_ids=(END,), teacher_share=0.0, **options):  # noqa: B008
    sampling = replace(sampling, teacher_share=teacher_share)
    return generate(model, requests, sampling, end_ids=end_ids, pad_id=0, batch_size=batch_size, **options)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma2"])
def test_a_response_does_not_depend_on_batch_size_or_order(tiny, family):
    model, wanted = tiny(family), requests()
    together = run(model, wanted)
    assert run(model, wanted, batch_size=1) == together
    assert run(model, wanted, batch_size=4) == together
    shuffled = np.random.default_rng(1).permutation(len(wanted))
    again = run(model, [wanted[i] for i in shuffled], batch_size=5)
    assert [again[list(shuffled).index(i)] for i in range(len(wanted))] == together
    assert len({generation.token_ids for generation in together}) > 10


def test_another_stream_or_seed_gives_another_response(tiny):
    model = tiny("llama")
    one = GenerationRequest(prompt_ids=(3, 4), max_new_tokens=12, seed=SEED, stream=("response", 1, 1))
    other = GenerationRequest(prompt_ids=(3, 4), max_new_tokens=12, seed=SEED, stream=("response", 1, 2))
    first, second = run(model, [one, other], end_ids=())
    assert first != second
    assert run(model, [replace(one, seed=20)], end_ids=()) != [first]


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma2"])
@pytest.mark.parametrize("ngram", [0, 2])
def test_greedy_text_is_that_of_transformers(tiny, family, ngram):
    model, wanted = tiny(family), requests(6)
    mine = run(model, wanted, Sampling(temperature=0, no_repeat_ngram=ngram), batch_size=4)
    for request, generation in zip(wanted, mine):
        ids = torch.tensor([request.prompt_ids])
        theirs = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=request.max_new_tokens,
            do_sample=False,
            no_repeat_ngram_size=ngram,
            eos_token_id=END,
            pad_token_id=0,
        )[0, len(request.prompt_ids) :]
        assert generation.token_ids == tuple(theirs.tolist())


def test_frequencies_are_those_of_the_softmax(tiny):
    model = tiny("llama")
    with torch.no_grad():
        model.lm_head.weight.mul_(0.3)
        expected = model(input_ids=torch.tensor([[5, 9]])).logits[0, -1].double().softmax(-1).numpy()
    draws = 4000
    wanted = [
        GenerationRequest(prompt_ids=(5, 9), max_new_tokens=1, seed=SEED, stream=("response", 1, i)) for i in range(draws)
    ]
    tokens = [generation.token_ids[0] for generation in run(model, wanted, batch_size=draws)]
    counts = np.bincount(tokens, minlength=VOCABULARY)
    common = expected * draws >= 5
    observed = [*counts[common], counts[~common].sum()]
    wanted_counts = [*expected[common] * draws, expected[~common].sum() * draws]
    if wanted_counts[-1] == 0:
        observed, wanted_counts = observed[:-1], wanted_counts[:-1]
    assert len(observed) > 5
    assert chisquare(observed, np.array(wanted_counts) / sum(wanted_counts) * sum(observed)).pvalue > 0.001


def test_any_end_token_stops_a_row_and_is_its_last(tiny):
    model, wanted = tiny("gpt2"), requests(16, budget=20)
    ends = (2, 3, 4, 5, 6, 7, 8)
    free = run(model, wanted, end_ids=())
    stopped = run(model, wanted, end_ids=ends)
    for request, long, short in zip(wanted, free, stopped):
        assert len(long.token_ids) == request.max_new_tokens and not long.finished
        first_end = next((i for i, token in enumerate(long.token_ids) if token in ends), None)
        assert short.finished == (first_end is not None)
        assert short.token_ids == long.token_ids[: None if first_end is None else first_end + 1]
    assert 4 < sum(generation.finished for generation in stopped) < 16


def test_no_request_and_no_budget_give_no_tokens(tiny):
    model = tiny("gpt2")
    assert run(model, []) == []
    empty = GenerationRequest(prompt_ids=(3,), max_new_tokens=0, seed=SEED, stream=("tail", 1))
    full = GenerationRequest(prompt_ids=(3,), max_new_tokens=2, seed=SEED, stream=("tail", 2))
    none, some = run(model, [empty, full], end_ids=())
    assert none.token_ids == () and not none.finished and len(some.token_ids) == 2


def test_a_tail_continues_its_prefix_with_its_own_stream(tiny):
    model = tiny("llama")
    prompt, prefix = (3, 4, 5), (6, 7)
    tail = GenerationRequest(prompt_ids=prompt + prefix, max_new_tokens=6, seed=SEED, stream=("tail", 1, 0))
    neighbour = GenerationRequest(prompt_ids=tuple(range(3, 20)), max_new_tokens=9, seed=SEED, stream=("tail", 1, 1))
    alone = run(model, [tail], end_ids=())[0]
    assert run(model, [neighbour, tail], end_ids=())[1] == alone
    greedy = Sampling(temperature=0)
    whole = run(model, [GenerationRequest(prompt_ids=prompt, max_new_tokens=8, seed=SEED, stream=("a",))], greedy, end_ids=())[
        0
    ]
    cut = GenerationRequest(prompt_ids=prompt + whole.token_ids[:3], max_new_tokens=5, seed=SEED, stream=("b",))
    assert run(model, [cut], greedy, end_ids=())[0].token_ids == whole.token_ids[3:]


def test_padded_classes_are_never_sampled(tiny):
    tokens = [t for g in run(tiny("llama"), requests(), end_ids=(), vocabulary=9) for t in g.token_ids]
    assert max(tokens) == 8


def test_modes_and_gradient_are_restored_and_checkpointing_has_no_effect(tiny):
    model, wanted = tiny("llama", attention_dropout=0.9), requests()
    expected = run(model, wanted)
    checkpoint_activations(model)
    model.train()
    model.model.norm.eval()
    modes = [module.training for module in model.modules()]
    assert run(model, wanted) == expected
    assert [module.training for module in model.modules()] == modes and torch.is_grad_enabled()


def test_text_is_generated_with_bf16_weights_and_autocast(tiny):
    wanted = requests()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        automatic = run(tiny("llama"), wanted)
    lowered = run(tiny("llama").to(torch.bfloat16), wanted)
    for generations in (automatic, lowered):
        assert all(0 < len(g.token_ids) <= r.max_new_tokens for r, g in zip(wanted, generations))


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_a_sequence_may_fill_the_models_positions_but_not_exceed_them(tiny, family):
    model = tiny(family)
    longest = GenerationRequest(prompt_ids=(3,) * 60, max_new_tokens=4, seed=SEED, stream=("a", 1))
    short = [GenerationRequest(prompt_ids=(4,), max_new_tokens=63, seed=SEED, stream=("b", i)) for i in range(4)]
    full = run(
        model, [longest, *short], end_ids=()
    )  # one row in five has ended: it stays in the batch, and its position must not increase
    assert [len(generation.token_ids) for generation in full] == [4, 63, 63, 63, 63]
    too_long = GenerationRequest(prompt_ids=(3,) * 60, max_new_tokens=5, seed=SEED, stream=("a", 1))
    with pytest.raises(ConfigError, match="60 prompt tokens \\+ 5 new = 65: must be at most 64, the model's number"):
        run(model, [too_long])


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=-1),
        Sampling(temperature=float("nan")),
        Sampling(top_p=0),
        Sampling(top_k=-1),
        Sampling(no_repeat_ngram=-1),
    ],
)
def test_sampling_out_of_range_is_rejected(tiny, sampling):
    with pytest.raises(ConfigError, match=r"sampling\.\w+ = .*: must be"):
        run(tiny("gpt2"), requests(1), sampling)


# --- mixtures with a teacher --------------------------------------------------------------------------------------------

MIXED = Sampling(temperature=0.8, top_p=0.95, top_k=30)
TEACHERS = {"wider": ("llama", {"hidden_size": 32, "num_hidden_layers": 2}), "another family": ("gpt2", {}), "opt": ("opt", {})}


@pytest.fixture(params=TEACHERS, ids=str)
def teacher(tiny, request):
    """A teacher of another shape, with more rows in its head than there are tokens."""
    family, fields = TEACHERS[request.param]
    return tiny(family, vocab_size=VOCABULARY + 9, **fields)


def exact_mixture(student, teacher, ids, share, sampling):
    """The distribution that the token after `ids` is sampled from, in float64."""
    with torch.no_grad():
        q, p = (
            oracle(model(input_ids=torch.tensor([ids])).logits[0, -1, :VOCABULARY].double().numpy(), sampling)
            for model in (student, teacher)
        )
    return (1 - share) * q + share * p


def fits(tokens, expected, vocabulary=VOCABULARY):
    """p-value of the tokens under the distribution; classes with few expected tokens are pooled."""
    counts = np.bincount(tokens, minlength=vocabulary)
    assert not counts[expected == 0].any(), "a class without probability was drawn"
    common = expected * len(tokens) >= 5
    observed, wanted = [*counts[common], counts[~common].sum()], [*expected[common], expected[~common].sum()]
    kept = [i for i, probability in enumerate(wanted) if probability * len(tokens) >= 1]
    assert len(kept) > 3, "too clear-cut to tell anything"
    observed, wanted = np.array(observed)[kept], np.array(wanted)[kept]
    return chisquare(observed, wanted / wanted.sum() * observed.sum()).pvalue


def softened(model):
    """A model with logits small enough for many classes to be sampled."""
    with torch.no_grad():
        for parameter in {id(p): p for p in model.get_output_embeddings().parameters()}.values():
            parameter.mul_(0.4)
    return model


def test_frequencies_of_both_tokens_are_those_of_the_mixture(tiny):
    """20,000 first tokens, and second tokens given the most frequent first: so both caches contain the sampled token."""
    student, teacher = softened(tiny("llama")), softened(tiny("gpt2", vocab_size=VOCABULARY + 9))
    prompt, share, draws = (5, 9), 0.3, 20_000
    wanted = [
        GenerationRequest(prompt_ids=prompt, max_new_tokens=2, seed=SEED, stream=("response", 1, i)) for i in range(draws)
    ]
    options = {"end_ids": (), "vocabulary": VOCABULARY, "teacher": teacher, "teacher_share": share}
    drawn = [g.token_ids for g in run(student, wanted, MIXED, batch_size=draws, **options)]
    expected = exact_mixture(student, teacher, prompt, share, MIXED)
    assert fits([first for first, _ in drawn], expected) > 0.001
    commonest = int(expected.argmax())
    seconds = [second for first, second in drawn if first == commonest]
    assert len(seconds) > 500
    assert fits(seconds, exact_mixture(student, teacher, (*prompt, commonest), share, MIXED)) > 0.001
    for other in (exact_mixture(student, teacher, prompt, 0.4, MIXED), exact_mixture(teacher, student, prompt, share, MIXED)):
        assert fits([first for first, _ in drawn], other) < 0.001, "another mixture would have passed too"


def test_a_mixtures_text_does_not_depend_on_batch_size_or_order(tiny, teacher):
    student, wanted = tiny("llama"), requests(budget=20)
    options = {"vocabulary": VOCABULARY, "teacher": teacher, "teacher_share": 0.5}
    together = run(student, wanted, **options)
    shuffled = np.random.default_rng(1).permutation(len(wanted)).tolist()
    again = run(student, [wanted[i] for i in shuffled], batch_size=5, **options)
    assert [again[shuffled.index(i)] for i in range(len(wanted))] == together
    assert together == [run(student, [request], batch_size=1, **options)[0] for request in wanted]
    lengths = {len(generation.token_ids) for generation in together}
    assert min(lengths) < 5 < 10 < max(lengths), "rows that end early are taken out of both caches"


def test_teacher_share_0_gives_the_students_text_and_1_the_teachers(tiny, teacher):
    student, wanted = tiny("llama"), requests()
    options = {"vocabulary": VOCABULARY}
    assert run(student, wanted, teacher=teacher, teacher_share=0.0, **options) == run(student, wanted, **options)
    assert run(student, wanted, teacher=teacher, teacher_share=1.0, **options) == run(teacher, wanted, **options)
    both = run(student, wanted, teacher=teacher, teacher_share=0.5, **options)
    assert both not in (run(student, wanted, **options), run(teacher, wanted, **options))


def test_a_model_mixed_with_itself_generates_its_own_text(tiny):
    model, wanted = tiny("llama"), requests()
    assert run(model, wanted, MIXED, teacher=model, teacher_share=0.5) == run(model, wanted, MIXED)


def test_ngrams_are_banned_in_both_models(tiny, teacher):
    wanted = [GenerationRequest(prompt_ids=(3, 4, 3, 5), max_new_tokens=24, seed=SEED, stream=("a", i)) for i in range(4)]
    sampling = Sampling(temperature=0.05, no_repeat_ngram=2)
    options = {"end_ids": (), "vocabulary": VOCABULARY, "teacher": teacher, "teacher_share": 0.5}
    for generation in run(tiny("llama"), wanted, sampling, **options):
        text = (3, 4, 3, 5, *generation.token_ids)
        assert len(set(pairwise(text))) == len(text) - 1


def test_the_teachers_modes_are_restored(tiny):
    student, teacher = tiny("llama"), tiny("llama", attention_dropout=0.9)
    expected = run(student, requests(), teacher=teacher.eval(), teacher_share=0.5)
    teacher.train()
    assert run(student, requests(), teacher=teacher, teacher_share=0.5) == expected
    assert teacher.training


def test_a_teacher_with_too_few_positions_is_rejected(tiny):
    long = GenerationRequest(prompt_ids=(3,) * 60, max_new_tokens=5, seed=SEED, stream=("a", 1))
    assert len(run(tiny("llama"), [long], end_ids=())[0].token_ids) == 5
    with pytest.raises(ConfigError, match="must be at most 64, the model's number of positions"):
        run(tiny("llama"), [long], teacher=tiny("gpt2"), teacher_share=0.5)


@pytest.mark.parametrize(
    ("share", "sampling", "message"),
    [
        (1.5, Sampling(), r"sampling.teacher_share = 1.5: must be in \[0, 1\]"),
        (float("nan"), Sampling(), "sampling.teacher_share = nan"),
        (0.5, Sampling(temperature=0), "sampling.temperature = 0: must be > 0 for text with tokens of the teacher"),
    ],
)
def test_an_invalid_mixture_is_rejected(tiny, share, sampling, message):
    model = tiny("llama")
    with pytest.raises(ConfigError, match=message):
        run(model, requests(1), sampling, teacher=model, teacher_share=share)


# --- the distribution of a token ----------------------------------------------------------------------------------------


def oracle(logits, sampling):
    """Temperature, then the k most probable, then the smallest set that reaches p."""
    p = np.exp(logits / sampling.temperature - np.max(logits / sampling.temperature))
    order = np.argsort(-p, kind="stable")
    if sampling.top_k:
        p[order[sampling.top_k :]] = 0
    p /= p.sum()
    mass_before = np.concatenate([[0], np.cumsum(p[order])[:-1]])
    p[order[mass_before >= sampling.top_p]] = 0
    return p / p.sum()


@given(
    st.lists(st.integers(-40, 40), min_size=2, max_size=12, unique=True),
    st.sampled_from([0.5, 1.0, 2.0]),
    st.integers(0, 12),
    st.sampled_from([0.05, 0.313, 0.7, 0.9, 1.0]),
)
def test_probabilities_are_those_of_the_oracle(tenths, temperature, top_k, top_p):
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    logits = np.array(tenths) / 10
    got = probabilities(torch.tensor(logits)[None], sampling)[0].numpy()
    np.testing.assert_allclose(got, oracle(logits, sampling), atol=1e-12)


def test_a_banned_class_has_no_probability():
    got = probabilities(torch.tensor([[1.0, -torch.inf, 2.0]]), Sampling(top_p=0.9999))
    assert got[0, 1] == 0 and got.sum() == pytest.approx(1)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=24), st.integers(1, 4))
def test_the_ngram_ban_is_that_of_transformers(tokens, size):
    scores = NoRepeatNGramLogitsProcessor(size)(torch.tensor([tokens]), torch.zeros(1, 4))
    assert set(NgramBan(size, [tokens]).banned(0)) == set(torch.isinf(scores[0]).nonzero().flatten().tolist())


def test_no_ngram_of_prompt_and_response_is_repeated(tiny):
    wanted = [GenerationRequest(prompt_ids=(3, 4, 3, 5), max_new_tokens=24, seed=SEED, stream=("a", i)) for i in range(4)]
    sampling = Sampling(temperature=0.05, no_repeat_ngram=2)
    for generation in run(tiny("llama"), wanted, sampling, end_ids=()):
        text = (3, 4, 3, 5, *generation.token_ids)
        assert len(set(pairwise(text))) == len(text) - 1


# --- 50,000 draws -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [10, 20, 30])
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.6),
        Sampling(top_k=70),
        Sampling(top_p=0.8),
        Sampling(temperature=1.3, top_p=0.95, top_k=150),
    ],
    ids=str,
)
def test_many_samples_fit_the_distribution(sampling, seed):
    """Tokens are sampled from masses that need not sum to 1."""
    draws, vocabulary = 50_000, 300
    logits = 2 * np.random.default_rng(seed).normal(size=vocabulary)
    uniforms = np.array([randomness.generator(seed, "response", 0, i).random(NUMBERS_PER_DRAW) for i in range(draws)])
    masses_V = _masses(torch.tensor(logits, dtype=torch.float32)[None], sampling)[0]
    parts = torch.from_numpy(uniforms).split(10_000)
    tokens = torch.cat([sample_rows(masses_V.expand(len(part), -1), part) for part in parts]).numpy()
    expected = oracle(logits, sampling)
    assert fits(tokens, expected, vocabulary) > 0.001
    assert fits(tokens, oracle(logits, replace(sampling, temperature=sampling.temperature * 1.05)), vocabulary) < 0.001


def test_many_samples_of_a_large_vocabulary_fit_its_distribution():
    """The first five tokens of 10,000 streams; classes are counted in ranges, and by their id modulo a number."""
    vocabulary, streams = 40_000, 10_000
    masses_V = torch.from_numpy(np.random.default_rng(40).gamma(0.3, size=vocabulary)).float()
    numbers = [randomness.generator(40, "response", 0, i).random((5, NUMBERS_PER_DRAW)) for i in range(streams)]
    parts = torch.from_numpy(np.concatenate(numbers)).split(1_000)
    tokens = torch.cat([sample_rows(masses_V.expand(len(part), -1), part) for part in parts]).numpy()
    share = masses_V.double().numpy() / masses_V.double().sum().item()
    assert len(tokens) == 50_000 and (masses_V[tokens] > 0).all()
    for group in (np.arange(vocabulary) // 199, np.arange(vocabulary) % 97):
        observed = np.bincount(group[tokens], minlength=group.max() + 1)
        assert chisquare(observed, np.bincount(group, share) * 50_000).pvalue > 0.001


def test_text_of_a_large_vocabulary_does_not_depend_on_the_batch():
    config = {**LLAMA, "vocab_size": 50_000, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    model = fresh_model(config, 1)
    requests = [
        GenerationRequest(prompt_ids=tuple(range(5, 9 + i)), max_new_tokens=30, seed=3, stream=("large", i)) for i in range(16)
    ]
    texts = [generate(model, requests, Sampling(), end_ids=(), pad_id=0, batch_size=size) for size in (1, 4, 16)]
    assert texts[0] == texts[1] == texts[2]
    assert len({token for text in texts[0] for token in text.token_ids}) > 400, "the case must be flat"
