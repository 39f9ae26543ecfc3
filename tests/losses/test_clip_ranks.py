"""Which classes an interval keeps, and the sorted row in compact form, against NumPy in float64."""

from typing import get_args

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from redistill.losses.clip_ranks import Mode, compact_ranks, keep_mask, rank_edges, sort_descending
from redistill.losses.dac_kl import DacKL, DacKLConfig

every_mode = pytest.mark.parametrize("mode", get_args(Mode))
INF = float("inf")


def log_rows(seed: int, num_rows: int = 6, vocabulary: int = 12, scale: float = 1.5) -> torch.Tensor:
    logits = scale * np.random.default_rng(seed).standard_normal((num_rows, vocabulary))
    return torch.log_softmax(torch.from_numpy(logits), dim=-1)


# --- keep_mask ----------------------------------------------------------------------------------------------------------


def keep_oracle(p: np.ndarray, lower: float, upper: float, mode: str, keep_target: bool) -> list[bool]:
    order = np.argsort(-p, kind="stable")
    before = np.empty_like(p)
    before[order] = np.concatenate([[0.0], np.cumsum(p[order])[:-1]])
    above = np.empty_like(p)
    above[order] = (np.arange(len(p)) + 0.5) / len(p)
    inside = {
        "value": (lower <= p) & (p <= upper),
        "relative": (lower <= p / p.max()) & (p / p.max() <= upper),
        "mass": (lower <= before) & (before < upper),
        "entry_quantile": (above <= 1 - lower) & (above >= 1 - upper),
    }[mode]
    return (inside | (keep_target & (np.arange(len(p)) == order[0]))).tolist()


@hypothesis.given(
    counts=st.lists(st.integers(0, 4), min_size=2, max_size=9).filter(any),
    ends=st.lists(st.one_of(st.floats(0, 1), st.integers(0, 8)), min_size=2, max_size=2),
    mode=st.sampled_from(get_args(Mode)),
    keep_target=st.booleans(),
)
@hypothesis.settings(max_examples=150, deadline=None)
def test_kept_classes_are_those_of_the_definition(counts, ends, mode, keep_target):
    logp_NV = (torch.tensor([counts], dtype=torch.float64) / sum(counts)).log()
    p = logp_NV.exp()[0].numpy()
    if mode == "relative":  # computed from logarithms here and as a quotient there: choose ends between the scores
        edges = (np.unique(np.append(p / p.max(), 0.0))[1:] + np.unique(np.append(p / p.max(), 0.0))[:-1]) / 2
        ends = [end if isinstance(end, int) else round(end * 8) for end in ends]
    else:
        quantiles = 1 - (np.arange(len(p)) + 0.5) / len(p)
        edges = np.concatenate([p, np.cumsum(np.sort(p)[::-1]), quantiles])  # an integer end falls on a class exactly
    lower, upper = (edges[end % len(edges)] if isinstance(end, int) else end for end in ends)
    got = keep_mask(logp_NV, *torch.tensor([[lower], [upper]], dtype=torch.float64), mode, keep_target)
    assert got[0].tolist() == keep_oracle(p, lower, upper, mode, keep_target)


def test_each_row_has_its_own_interval():
    logp_NV = torch.tensor([[0.5, 0.3, 0.2]] * 3).log()
    got = keep_mask(logp_NV, torch.tensor([0.0, 0.25, 0.6]), torch.tensor([0.25, 1.0, 0.7]), keep_target=False)
    assert got.tolist() == [[False, False, True], [True, True, False], [False, False, False]]


def test_ties_among_many_classes_go_to_the_smaller_id():
    logp_NV = torch.full((2, 4096), 1 / 4096, dtype=torch.float64).log()
    got = keep_mask(logp_NV, torch.tensor([0.0, 0.5]), torch.tensor([0.25, 0.75]), "mass", keep_target=False)
    kept = [row.nonzero().flatten() for row in got]
    assert all((ids.diff() == 1).all() for ids in kept)
    assert [(ids[0].item(), len(ids)) for ids in kept] == [(0, 1024), (2048, 1024)]


@every_mode
@pytest.mark.parametrize("vocabulary", [7, 1000, 50_000])
def test_single_precision_inputs_are_compared_in_double(mode, vocabulary):
    random = np.random.default_rng(vocabulary)
    logits = torch.from_numpy(random.normal(scale=[[0.1], [1.0], [3.0], [8.0]], size=(4, vocabulary))).float()
    logp_NV = torch.log_softmax(logits, dim=-1)
    p_NV = np.exp(logp_NV.numpy().astype(np.float64))
    highest = p_NV.max(axis=1) if mode == "value" else np.ones(4)
    for _ in range(5):
        lower_N, upper_N = torch.from_numpy(np.sort(random.random((2, 4)) ** 2 * highest, axis=0)).float()
        got = keep_mask(logp_NV, lower_N, upper_N, mode, keep_target=False).numpy()
        for n in range(4):
            wanted = keep_oracle(p_NV[n], float(lower_N[n]), float(upper_N[n]), mode, keep_target=False)
            assert np.flatnonzero(got[n] != wanted).tolist() == []


@every_mode
def test_the_whole_interval_keeps_every_class(mode):
    logp_NV = torch.log_softmax(log_rows(31, 4, 50_000).float(), dim=-1)
    assert keep_mask(logp_NV, torch.zeros(4), torch.ones(4), mode, keep_target=False).all()
    _, rows = DacKL(DacKLConfig(mode=mode, fixed_interval=(0.0, 1.0)), 50_000)(logp_NV, logp_NV)
    assert rows["kept_classes"].tolist() == [50_000] * 4


def test_of_equal_maxima_the_first_is_the_target():
    logp_NV = torch.tensor([[0.1, 0.45, 0.45]]).log()
    for mode, interval in (("value", (1, 1)), ("mass", (1, 1)), ("relative", (0, 0)), ("entry_quantile", (1, 1))):
        lower_N, upper_N = torch.tensor([interval]).float().T
        assert keep_mask(logp_NV, lower_N, upper_N, mode).tolist() == [[False, True, False]]


@pytest.mark.parametrize("vocabulary", [7, 50_257, 262_144])
@pytest.mark.parametrize("top", [1, 2, 5])
def test_the_quantile_above_one_minus_k_over_v_keeps_the_first_k(vocabulary, top):
    logp_NV = torch.log_softmax(torch.from_numpy(np.random.default_rng(top).normal(size=(3, vocabulary))).float(), dim=-1)
    lower_N = torch.full((3,), 1 - top / vocabulary)
    got = keep_mask(logp_NV, lower_N, torch.ones(3), "entry_quantile", keep_target=False)
    wanted = torch.zeros_like(got).scatter_(-1, logp_NV.topk(top).indices, True)
    assert torch.equal(got, wanted)


def test_mode_relative_with_a_lower_bound_is_min_p():
    logp_NV = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.1, 0.2, 0.3, 0.4]]).log()
    got = keep_mask(logp_NV, torch.full((2,), 0.45), torch.ones(2), "relative", keep_target=False)
    assert got.tolist() == [[True, True, False, False], [False, True, True, True]]


# --- the sorted row -----------------------------------------------------------------------------------------------------


def test_sorting_on_the_processor_is_a_descending_sort():
    p_NV = log_rows(0).exp()
    torch.testing.assert_close(sort_descending(p_NV), torch.sort(p_NV, descending=True).values, rtol=0, atol=0)


def compact_oracle(sorted_NV: torch.Tensor) -> torch.Tensor:
    """512 values and the masses of 16 buckets, each 16th root of V / 512 times as wide as the last."""
    vocabulary = sorted_NV.shape[1]
    if vocabulary <= 528:
        return sorted_NV
    edges = np.round(512 * (vocabulary / 512) ** (np.arange(17) / 16)).astype(int)
    return torch.from_numpy(np.c_[sorted_NV.numpy()[:, :512], np.add.reduceat(sorted_NV.numpy(), edges[:-1], axis=1)])


@hypothesis.given(vocabulary=st.one_of(st.integers(1, 700), st.integers(700, 300_000)))
def test_buckets_are_never_empty_grow_downward_and_end_with_the_last_rank(vocabulary):
    edges = rank_edges(vocabulary)
    widths = np.diff(edges)
    assert edges[0] == min(512, vocabulary) and edges[-1] == vocabulary
    assert len(widths) == min(16, max(0, vocabulary - 512)) and (widths >= 1).all()
    assert (np.diff(widths) >= -1).all()  # rounding takes one at most


def rows_with_ties_and_zeros(vocabulary: int) -> torch.Tensor:
    random = np.random.default_rng(vocabulary)
    logits = random.normal(scale=[[0.0], [0.1], [1.0], [4.0], [30.0]], size=(5, vocabulary))
    logits = np.concatenate([logits, np.round(2 * logits[2:4]), np.where(np.arange(vocabulary) < 600, logits[2:3], -np.inf)])
    return torch.from_numpy(logits).float().softmax(dim=-1)


@pytest.mark.parametrize("vocabulary", [700, 9000, 50_257])
def test_the_histogram_equals_a_sort(vocabulary):
    p_NV = rows_with_ties_and_zeros(vocabulary)
    sorted_NV = torch.sort(p_NV, descending=True).values
    got = compact_ranks(p_NV, rank_edges(vocabulary))
    torch.testing.assert_close(got, compact_oracle(sorted_NV.double()).float(), rtol=1e-6, atol=1e-12)
    assert torch.equal(got[:, :512], sorted_NV[:, :512])


def test_a_row_of_nan_stays_nan():
    p_NV = torch.stack([torch.full((9000,), value) for value in (INF - INF, -(INF - INF))])
    assert compact_ranks(p_NV, rank_edges(9000)).isnan().all()
