"""The span loss: Eq. 10 in NumPy, its weights, and properties of its gradient."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from redistill.errors import ConfigError
from redistill.losses.span import SpanConfig, counted_spans, pair_distance, pair_weights, span_loss
from redistill.randomness import generator

CONFIGS = [
    SpanConfig(nested="both", squared=squared, denominator=denominator, skip_singletons=skip)
    for squared in (False, True)
    for denominator in ("tokens", "pairs")
    for skip in (False, True)
]


def log_rows(num_rows: int, vocabulary: int, *key: int | str) -> torch.Tensor:
    """Log-probabilities in float64."""
    logits = generator(0, "span-test", *key).normal(size=(num_rows, vocabulary)) * 2
    return torch.log_softmax(torch.from_numpy(logits), dim=-1)


def oracle(logq: np.ndarray, logp: np.ndarray, spans: list[tuple[int, int]], config: SpanConfig) -> float:
    """Eq. 10 as a double loop."""
    q, p = np.exp(logq), np.exp(logp)
    per_span = []
    for start, stop in spans:
        if stop - start == 1 and config.skip_singletons:
            continue
        norms = [np.linalg.norm(q[j] * q[j + 1] - p[j] * p[j + 1]) for j in range(start, stop - 1)]
        terms = [norm**2 for norm in norms] if config.squared else norms
        count = stop - start if config.denominator == "tokens" else stop - start - 1
        per_span.append(sum(terms) / count if terms else 0.0)
    return float(np.mean(per_span)) if per_span else 0.0


def kept_rows(num_rows: int, vocabulary: int, *key: int | str) -> torch.Tensor:
    return torch.from_numpy(generator(0, "span-kept", *key).random((num_rows, vocabulary)) < 0.6)


span_lists = st.lists(
    st.tuples(st.integers(0, 8), st.integers(1, 9)).map(lambda pair: (pair[0], min(9, pair[0] + pair[1]))), max_size=6
)


@settings(max_examples=40, deadline=None)
@given(spans=span_lists, config=st.sampled_from(CONFIGS), key=st.integers(0, 1000))
def test_equals_the_double_loop_of_eq_10_and_its_form_in_pair_weights(spans, config, key):
    logq, logp = log_rows(9, 5, "q", key), log_rows(9, 5, "p", key)
    loss = span_loss(logq, logp, spans, config)
    assert float(loss) == pytest.approx(oracle(logq.numpy(), logp.numpy(), spans, config), abs=1e-12)

    weight = pair_weights(spans, 9, config)
    distance = pair_distance(logq, logp, len(logq) - 1, config.squared)
    assert weight.dtype == torch.float32
    assert weight[-1] == 0
    assert float((weight[:-1] * distance).sum()) == pytest.approx(float(loss), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_inputs_are_computed_in_float32(dtype):
    logq, logp = log_rows(6, 50, "q").to(dtype), log_rows(6, 50, "p").to(dtype)
    loss = span_loss(logq, logp, [(0, 4), (3, 6)])
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(
        oracle(logq.double().numpy(), logp.double().numpy(), [(0, 4), (3, 6)], SpanConfig()), rel=1e-5
    )


def test_singletons_count_in_the_mean_unless_skipped():
    logq, logp = log_rows(4, 5, "q"), log_rows(4, 5, "p")
    alone = span_loss(logq, logp, [(0, 2)])
    torch.testing.assert_close(span_loss(logq, logp, [(0, 2), (3, 4)]), alone / 2)
    torch.testing.assert_close(span_loss(logq, logp, [(0, 2), (3, 4)], SpanConfig(skip_singletons=True)), alone)


@pytest.mark.parametrize("spans", [[], [(2, 3)]])
def test_no_pair_gives_zero_and_a_zero_gradient(spans):
    logq = log_rows(4, 5, "q").requires_grad_()
    loss = span_loss(logq, log_rows(4, 5, "p"), spans)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert torch.equal(logq.grad, torch.zeros_like(logq))


@pytest.mark.parametrize("config", CONFIGS)
def test_equal_rows_give_zero_and_a_zero_gradient(config):
    logp = log_rows(4, 5, "p")
    logq = logp.clone().requires_grad_()
    loss = span_loss(logq, logp, [(0, 4)], config)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert torch.equal(logq.grad, torch.zeros_like(logq))


@pytest.mark.parametrize("config", CONFIGS)
def test_gradient_is_right_in_float64_and_reaches_the_student_alone(config):
    logits = torch.from_numpy(generator(0, "span-gradient").normal(size=(5, 4))).requires_grad_()
    logp = log_rows(5, 4, "p").requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: span_loss(torch.log_softmax(x, -1), logp.detach(), [(0, 3), (1, 5)], config), (logits,), atol=1e-7
    )
    span_loss(torch.log_softmax(logits, -1), logp, [(0, 3)], config).backward()
    assert logp.grad is None


def test_classes_that_cannot_be_taken_give_no_nan():
    logq = torch.tensor([[0.0, -math.inf], [0.0, -math.inf]], requires_grad=True)
    logp = torch.tensor([[-math.inf, 0.0], [-math.inf, 0.0]])
    loss = span_loss(logq, logp, [(0, 2)])
    loss.backward()
    assert float(loss.detach()) == pytest.approx(math.sqrt(2) / 2)
    assert torch.isfinite(logq.grad).all()


def test_a_span_outside_the_sample_is_rejected():
    with pytest.raises(AssertionError, match=r"\[3, 6\)"):
        pair_weights([(3, 6)], 5, SpanConfig())


def test_an_unknown_denominator_is_rejected():
    with pytest.raises(ConfigError, match="denominator = 'characters': must be tokens or pairs"):
        SpanConfig(denominator="characters")


# --- clipped vectors ----------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(spans=span_lists, squared=st.booleans(), key=st.integers(0, 1000))
def test_clipped_products_live_where_both_rows_keep_a_class(spans, squared, key):
    logq, logp, keep = log_rows(9, 5, "q", key), log_rows(9, 5, "p", key), kept_rows(9, 5, key)
    config = SpanConfig(nested="both", vectors="clipped", squared=squared)
    loss = span_loss(logq, logp, spans, config, keep)
    with np.errstate(divide="ignore"):
        clipped = [np.log(np.exp(rows.numpy()) * keep.numpy()) for rows in (logq, logp)]
    assert float(loss) == pytest.approx(oracle(*clipped, spans, config), abs=1e-12)


def test_clipped_to_every_class_is_the_full_loss_and_to_none_is_zero_without_gradient():
    logits, logp = log_rows(5, 4, "q").requires_grad_(), log_rows(5, 4, "p")
    everything = torch.ones(5, 4, dtype=torch.bool)
    clipped = SpanConfig(vectors="clipped")
    whole = span_loss(logits, logp, [(0, 5)], clipped, everything)
    torch.testing.assert_close(whole, span_loss(logits, logp, [(0, 5)]), rtol=0, atol=0)
    nothing = span_loss(logits, logp, [(0, 5)], clipped, ~everything)
    nothing.backward()
    assert float(nothing.detach()) == 0.0 and torch.equal(logits.grad, torch.zeros_like(logits))


def test_clipped_gradient_is_right_in_float64():
    logits, logp, keep = log_rows(5, 4, "q").requires_grad_(), log_rows(5, 4, "p"), kept_rows(5, 4, "gradient")
    config = SpanConfig(vectors="clipped")
    assert torch.autograd.gradcheck(lambda x: span_loss(torch.log_softmax(x, -1), logp, [(0, 5)], config, keep), (logits,))


@pytest.mark.parametrize("vectors", ["full", "clipped"])
def test_clipped_vectors_need_the_kept_classes(vectors):
    keep = kept_rows(3, 4) if vectors == "full" else None
    with pytest.raises(AssertionError, match="clipped vectors need keep_TV"):
        span_loss(log_rows(3, 4, "q"), log_rows(3, 4, "p"), [(0, 3)], SpanConfig(vectors=vectors), keep)


# --- nested spans -------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(spans=span_lists, skip=st.booleans())
def test_of_nested_spans_the_outer_or_the_inner_ones_count(spans, skip):
    tokens = [set(range(*span)) for span in spans]
    outer = [span for span, own in zip(spans, tokens) if not any(own < other for other in tokens)]
    inner = [span for span, own in zip(spans, tokens) if not any(own > other for other in tokens)]
    for nested, wanted in (("both", spans), ("outer", outer), ("inner", inner)):
        wanted = [span for span in wanted if not (skip and span[1] - span[0] == 1)]
        assert counted_spans(spans, SpanConfig(nested=nested, skip_singletons=skip)) == wanted


@pytest.mark.parametrize("nested", ["outer", "inner"])
def test_a_prepositional_phrase_and_its_noun_phrase_count_as_one(nested):
    logq, logp = log_rows(6, 5, "q"), log_rows(6, 5, "p")
    config = SpanConfig(nested=nested)
    alone = [(0, 4)] if nested == "outer" else [(1, 4)]
    got = span_loss(logq, logp, [(0, 4), (1, 4)], config)
    torch.testing.assert_close(got, span_loss(logq, logp, alone))
    torch.testing.assert_close(pair_weights([(0, 4), (1, 4)], 6, config), pair_weights(alone, 6, SpanConfig()))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"nested": "flat"}, "nested = 'flat': must be outer, inner or both"),
        ({"form": "cosine"}, "form = 'cosine': must be products or likelihood"),
        ({"form": "likelihood", "squared": True}, "form = 'likelihood': compares no products"),
        ({"placement": "first"}, "placement = 'first': must be phrases or random"),
        ({"vectors": "top"}, "vectors = 'top': must be full or clipped"),
    ],
)
def test_an_unknown_reading_is_rejected(setting, message):
    with pytest.raises(ConfigError, match=message):
        SpanConfig(**setting)
