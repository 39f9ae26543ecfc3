"""The network that predicts DAC-KL's interval: its three linear maps, their initialisation, and the sorted input."""

from typing import get_args

import numpy as np
import pytest
import torch

from redistill.errors import ConfigError
from redistill.losses.clip_network import (
    ClipNetwork,
    ClipNetworkConfig,
    SortedInput,
)
from redistill.losses.dac_kl import DacKL, DacKLConfig
from tests.losses.test_clip_ranks import compact_oracle

INF = float("inf")


def log_rows(seed: int, num_rows: int = 6, vocabulary: int = 12, scale: float = 1.5) -> torch.Tensor:
    logits = scale * np.random.default_rng(seed).standard_normal((num_rows, vocabulary))
    return torch.log_softmax(torch.from_numpy(logits), dim=-1)


# --- ClipNetwork --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reading", get_args(SortedInput))
@pytest.mark.parametrize("vocabulary", [12, 700])
def test_three_maps_equal_one_map_of_the_concatenation(reading, vocabulary):
    network = ClipNetwork(vocabulary, ClipNetworkConfig(hidden=5, sorted=reading), seed=3).double()
    p_NV, q_NV = log_rows(14, 6, vocabulary).exp(), log_rows(15, 6, vocabulary).exp()
    sorted_NV = torch.sort(p_NV, descending=True).values
    ranked_NK = compact_oracle(sorted_NV) if reading == "compact" else sorted_NV
    weight = torch.cat([network.teacher_weight, network.sorted_weight, network.student_weight])
    hidden = torch.nn.functional.gelu(torch.cat([p_NV, ranked_NK, q_NV], dim=1) @ weight + network.hidden_bias)
    upper_N, lower_N = torch.sigmoid(hidden @ network.output_weight.T + network.output_bias).T
    torch.testing.assert_close(network(p_NV, q_NV, sorted_NV), (torch.minimum(lower_N, upper_N), upper_N))


def test_the_initial_interval_is_that_of_the_biases():
    p_NV = log_rows(16).float().exp()
    lower_N, upper_N = ClipNetwork(12, seed=4)(p_NV, p_NV)
    assert torch.logit(upper_N).sub(4).abs().max() < 0.1
    assert torch.logit(lower_N).add(7).abs().max() < 0.1


def test_lower_is_clipped_to_upper():
    p_NV = log_rows(17).float().exp()
    lower_N, upper_N = ClipNetwork(12, start=(-1.0, 2.0), seed=5)(p_NV, p_NV, p_NV)
    assert torch.equal(lower_N, upper_N)


def test_the_interval_needs_only_teacher_and_student():
    p_NV, q_NV = log_rows(32).float().exp(), log_rows(33).float().exp()
    literal = ClipNetworkConfig(upper_bias=0.0, lower_bias=0.0)
    for network in (ClipNetwork(12), ClipNetwork(12, literal), DacKL(DacKLConfig(), 12).network):
        lower_N, upper_N = network(p_NV, q_NV)
        assert ((lower_N >= 0) & (lower_N <= upper_N) & (upper_N <= 1)).all()
        given = network(p_NV, q_NV, torch.sort(p_NV, descending=True).values)
        assert torch.equal(lower_N, given[0]) and torch.equal(upper_N, given[1])


def test_autocast_does_not_reach_the_network():
    p_NV, network = log_rows(18).float().exp(), ClipNetwork(12, seed=6)
    plain = network(p_NV, p_NV, p_NV)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = network(p_NV, p_NV, p_NV)
    assert cast[0].dtype == torch.float32
    assert torch.equal(plain[0], cast[0]) and torch.equal(plain[1], cast[1])


def test_weights_depend_on_the_seed_alone():
    state = torch.get_rng_state()
    first = ClipNetwork(12, seed=7).state_dict()
    torch.manual_seed(99)
    again, other = ClipNetwork(12, seed=7).state_dict(), ClipNetwork(12, seed=8).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["teacher_weight"], other["teacher_weight"])
    torch.manual_seed(99)
    before = torch.get_rng_state()
    ClipNetwork(12, seed=7)
    assert torch.equal(before, torch.get_rng_state())
    torch.set_rng_state(state)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"hidden": 0}, "hidden = 0: must be at least 1"),
        ({"sorted": "top"}, "sorted = 'top': must be one of exact, compact"),
        ({"upper_bias": INF}, "upper_bias = inf: must be finite"),
    ],
)
def test_a_setting_of_the_network_out_of_range_is_rejected_by_name(setting, message):
    with pytest.raises(ConfigError, match=message):
        ClipNetworkConfig(**setting)
