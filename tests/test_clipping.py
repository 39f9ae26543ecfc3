"""DAC-KL against NumPy in float64: which classes are kept, what the divergence on them is, and how f_sub learns."""

from typing import get_args

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from redistill.clip_network import sort_descending
from redistill.clipping import ClipNetwork, DacKL, DacKLConfig, Normalise, clipped_divergence, keep_mask
from redistill.errors import ConfigError

every_normalisation = pytest.mark.parametrize("normalise", get_args(Normalise))
every_example = pytest.mark.parametrize("config", DacKLConfig.examples(), ids=repr)
INF = float("inf")


def log_rows(seed: int, num_rows: int = 6, vocabulary: int = 12, scale: float = 1.5) -> torch.Tensor:
    logits = scale * np.random.default_rng(seed).standard_normal((num_rows, vocabulary))
    return torch.log_softmax(torch.from_numpy(logits), dim=-1)


def run(dac: DacKL, logits: torch.Tensor, logp_NV: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Forward and backward from a leaf of student logits."""
    divergence_N, rows = dac(torch.log_softmax(logits, dim=-1), logp_NV)
    divergence_N.sum().backward()
    return divergence_N, rows


# --- keep_mask ----------------------------------------------------------------------------------------------------------


def keep_oracle(p: np.ndarray, lower: float, upper: float, mode: str, keep_target: bool) -> list[bool]:
    order = np.argsort(-p, kind="stable")
    before = np.empty_like(p)
    before[order] = np.concatenate([[0.0], np.cumsum(p[order])[:-1]])
    inside = (lower <= p) & (p <= upper) if mode == "value" else (lower <= before) & (before < upper)
    return (inside | (keep_target & (np.arange(len(p)) == order[0]))).tolist()


@hypothesis.given(
    counts=st.lists(st.integers(0, 4), min_size=2, max_size=9).filter(any),
    ends=st.lists(st.one_of(st.floats(0, 1), st.integers(0, 8)), min_size=2, max_size=2),
    mode=st.sampled_from(["value", "mass"]),
    keep_target=st.booleans(),
)
@hypothesis.settings(max_examples=150, deadline=None)
def test_kept_classes_are_those_of_the_definition(counts, ends, mode, keep_target):
    logp_NV = (torch.tensor([counts], dtype=torch.float64) / sum(counts)).log()
    p = logp_NV.exp()[0].numpy()
    edges = np.concatenate([p, np.cumsum(np.sort(p)[::-1])])  # an integer end falls on a class exactly
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


@pytest.mark.parametrize("mode", ["value", "mass"])
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


@pytest.mark.parametrize("mode", ["value", "mass"])
def test_the_whole_interval_keeps_every_class(mode):
    logp_NV = torch.log_softmax(log_rows(31, 4, 50_000).float(), dim=-1)
    assert keep_mask(logp_NV, torch.zeros(4), torch.ones(4), mode, keep_target=False).all()
    _, rows = DacKL(DacKLConfig(mode=mode, fixed_interval=(0.0, 1.0)), 50_000)(logp_NV, logp_NV)
    assert rows["kept_classes"].tolist() == [50_000] * 4


def test_of_equal_maxima_the_first_is_the_target():
    logp_NV = torch.tensor([[0.1, 0.45, 0.45]]).log()
    for mode in ("value", "mass"):
        assert keep_mask(logp_NV, torch.ones(1), torch.ones(1), mode).tolist() == [[False, True, False]]


def test_sorting_on_the_processor_is_a_descending_sort():
    p_NV = log_rows(0).exp()
    torch.testing.assert_close(sort_descending(p_NV), torch.sort(p_NV, descending=True).values, rtol=0, atol=0)


# --- clipped_divergence -------------------------------------------------------------------------------------------------


def divergence_oracle(q: np.ndarray, p: np.ndarray, keep: np.ndarray, normalise: str) -> float:
    if not keep.any():
        return 0.0
    q_kept, p_kept = q[keep], p[keep]
    if normalise == "renormalise":
        q_kept, p_kept = q_kept / q_kept.sum(), p_kept / p_kept.sum()
    elif normalise == "teacher":
        p_kept = p_kept / p_kept.sum()
    elif normalise == "other_bin" and not keep.all():
        q_kept, p_kept = np.append(q_kept, q[~keep].sum()), np.append(p_kept, p[~keep].sum())
    return float((p_kept * np.log(p_kept / q_kept)).sum())


@every_normalisation
@hypothesis.given(seed=st.integers(0, 2**32), keep=st.lists(st.booleans(), min_size=2, max_size=12), scale=st.floats(0.01, 6))
@hypothesis.example(seed=1, keep=[False] * 4, scale=1.0)
@hypothesis.example(seed=2, keep=[True] * 4, scale=1.0)
@hypothesis.example(seed=3, keep=[True, False, False], scale=1.0)
@hypothesis.settings(max_examples=40, deadline=None)
def test_divergence_is_that_of_the_definition(normalise, seed, keep, scale):
    logq_NV, logp_NV = (log_rows(seed + i, num_rows=1, vocabulary=len(keep), scale=scale) for i in (0, 1))
    wanted = divergence_oracle(logq_NV[0].exp().numpy(), logp_NV[0].exp().numpy(), np.array(keep), normalise)
    keep_NV = torch.tensor([keep])
    assert clipped_divergence(logq_NV, logp_NV, keep_NV, normalise).item() == pytest.approx(wanted, abs=1e-9)
    assert clipped_divergence(logq_NV, logp_NV, keep_NV.double(), normalise).item() == pytest.approx(wanted, abs=1e-9)
    single = clipped_divergence(logq_NV.float(), logp_NV.float(), keep_NV, normalise)
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(wanted, abs=1e-5, rel=1e-5)


@every_normalisation
@pytest.mark.parametrize("as_gate", [False, True])
def test_an_empty_set_gives_zero_and_no_gradient(normalise, as_gate):
    logits = log_rows(4).requires_grad_()
    keep_NV = torch.zeros_like(logits, dtype=torch.float64 if as_gate else torch.bool)
    divergence_N = clipped_divergence(torch.log_softmax(logits, dim=-1), log_rows(5), keep_NV, normalise)
    divergence_N.sum().backward()
    assert divergence_N.abs().max() == 0
    assert logits.grad.abs().max() == 0


@every_normalisation
def test_gradients_of_student_and_gate_are_those_of_the_value(normalise):
    logits, logp_NV = log_rows(6).requires_grad_(), log_rows(7)
    gate_NV = (0.1 + 0.8 * torch.from_numpy(np.random.default_rng(8).random((6, 12)))).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z, w: clipped_divergence(torch.log_softmax(z, dim=-1), logp_NV, w, normalise), (logits, gate_NV)
    )


def literal_gradient(logits: torch.Tensor, logp_NV: torch.Tensor, keep_NV: torch.Tensor) -> torch.Tensor:
    logits = logits.clone().requires_grad_()
    clipped_divergence(torch.log_softmax(logits, dim=-1), logp_NV, keep_NV).sum().backward()
    return logits.grad


@hypothesis.given(seed=st.integers(0, 2**32), keep=st.lists(st.booleans(), min_size=12, max_size=12))
@hypothesis.settings(max_examples=25, deadline=None)
def test_literal_form_pulls_the_logits_by_q_times_mass_minus_p_on_the_set(seed, keep):
    logits, logp_NV, keep_NV = log_rows(seed), log_rows(seed + 1), torch.tensor([keep]).expand(6, 12)
    kept_NV = logp_NV.exp() * keep_NV
    wanted = logits.softmax(dim=-1) * kept_NV.sum(dim=-1, keepdim=True) - kept_NV
    torch.testing.assert_close(literal_gradient(logits, logp_NV, keep_NV), wanted, atol=1e-10, rtol=0)


def test_literal_form_rests_where_the_student_is_the_teacher_renormalised_on_the_set():
    logp_NV = log_rows(9)
    keep_NV = keep_mask(logp_NV, torch.full((6,), 0.1), torch.full((6,), 0.9))
    assert 0 < keep_NV.sum() < keep_NV.numel()
    at_rest = literal_gradient(logp_NV.masked_fill(~keep_NV, -INF), logp_NV, keep_NV)
    assert at_rest.abs().max() < 1e-12
    assert literal_gradient(logp_NV, logp_NV, keep_NV).abs().max() > 1e-3


def test_literal_form_is_a_weighted_divergence_from_the_clipped_teacher():
    logq_NV, logp_NV = log_rows(10), log_rows(11)
    keep_NV = keep_mask(logp_NV, torch.full((6,), 0.05), torch.ones(6))
    mass_N = (logp_NV.exp() * keep_NV).sum(dim=-1)
    wanted = mass_N * (clipped_divergence(logq_NV, logp_NV, keep_NV, "teacher") + mass_N.log())
    torch.testing.assert_close(clipped_divergence(logq_NV, logp_NV, keep_NV), wanted)


@every_normalisation
def test_a_full_set_is_forward_kl(normalise):
    logq_NV, logp_NV = log_rows(12), log_rows(13)
    got = clipped_divergence(logq_NV, logp_NV, torch.ones_like(logp_NV, dtype=torch.bool), normalise)
    torch.testing.assert_close(got, (logp_NV.exp() * (logp_NV - logq_NV)).sum(dim=-1))


def test_other_bin_survives_a_remainder_that_one_minus_the_mass_would_lose():
    logp_NV = torch.log_softmax(torch.tensor([[0.0, -60.0, -61.0]]), dim=-1)
    logq_NV = torch.log_softmax(torch.tensor([[0.0, -130.0, -131.0]]), dim=-1).requires_grad_()
    value = clipped_divergence(logq_NV, logp_NV, torch.tensor([[True, False, False]]), "other_bin")
    value.sum().backward()
    assert value.item() == pytest.approx(70 * float((logp_NV[0, 1:].exp()).sum()), rel=1e-4)
    assert logq_NV.grad.isfinite().all() and logq_NV.grad[0, 1] < 0


def test_a_set_that_the_student_rules_out_gives_zero_when_both_are_renormalised():
    logits = torch.tensor([[-INF, 0.0, 1.0]], requires_grad=True)
    logq_NV, logp_NV = torch.log_softmax(logits, dim=-1), log_rows(12, 1, 3).float()
    value = clipped_divergence(logq_NV, logp_NV, torch.tensor([[True, False, False]]), "renormalise")
    value.sum().backward()
    assert value.item() == 0
    assert logits.grad.abs().max() == 0


# --- ClipNetwork --------------------------------------------------------------------------------------------------------


def test_three_maps_equal_one_map_of_the_concatenation():
    network = ClipNetwork(12, hidden=5, seed=3).double()
    p_NV, q_NV = log_rows(14).exp(), log_rows(15).exp()
    sorted_NV = torch.sort(p_NV, descending=True).values
    weight = torch.cat([network.teacher_weight, network.sorted_weight, network.student_weight], dim=1)
    hidden = torch.nn.functional.gelu(torch.cat([p_NV, sorted_NV, q_NV], dim=1) @ weight.T + network.hidden_bias)
    upper_N, lower_N = torch.sigmoid(hidden @ network.output_weight.T + network.output_bias).T
    torch.testing.assert_close(network(p_NV, q_NV, sorted_NV), (torch.minimum(lower_N, upper_N), upper_N))


def test_training_starts_at_the_biases():
    p_NV = log_rows(16).float().exp()
    lower_N, upper_N = ClipNetwork(12, seed=4)(p_NV, p_NV)
    assert torch.logit(upper_N).sub(4).abs().max() < 0.1
    assert torch.logit(lower_N).add(7).abs().max() < 0.1


def test_lower_is_cut_to_upper():
    p_NV = log_rows(17).float().exp()
    lower_N, upper_N = ClipNetwork(12, upper_bias=-1.0, lower_bias=2.0, seed=5)(p_NV, p_NV, p_NV)
    assert torch.equal(lower_N, upper_N)


def test_the_interval_needs_only_teacher_and_student():
    p_NV, q_NV = log_rows(32).float().exp(), log_rows(33).float().exp()
    for network in (ClipNetwork(12), ClipNetwork(12, upper_bias=0.0, lower_bias=0.0), DacKL(DacKLConfig(), 12).network):
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


# --- DacKL --------------------------------------------------------------------------------------------------------------


def network_gradient(config: DacKLConfig, logits: torch.Tensor, logp_NV: torch.Tensor) -> torch.Tensor:
    dac = DacKL(config, logp_NV.shape[-1], seed=1).double()
    run(dac, logits.clone().requires_grad_(), logp_NV)
    return torch.cat([parameter.grad.flatten() for parameter in dac.parameters()])


@pytest.mark.parametrize("mode", ["value", "mass"])
def test_straight_through_has_the_gradient_of_the_soft_gate(mode):
    # The literal form is linear in the gate, so the two gradients agree although the two values do not.
    hard, soft = (DacKLConfig(hidden=4, mode=mode, gate=gate, lower_bias=-2.0) for gate in ("straight_through", "soft"))
    logits, logp_NV = log_rows(19), log_rows(20)
    wanted = network_gradient(soft, logits, logp_NV)
    assert wanted.abs().max() > 0
    torch.testing.assert_close(network_gradient(hard, logits, logp_NV), wanted)


@pytest.mark.parametrize("keep_target", [True, False])
def test_soft_gate_has_the_gradient_of_finite_differences(keep_target):
    dac = DacKL(DacKLConfig(hidden=3, gate="soft", lower_bias=-2.0, keep_target=keep_target), 12, seed=2).double()
    logq_NV, logp_NV, bias = log_rows(21), log_rows(22), dac.network.output_bias.detach().clone().requires_grad_()

    def value(output_bias):
        return torch.func.functional_call(dac, {"network.output_bias": output_bias}, (logq_NV, logp_NV))[0]

    assert torch.autograd.gradcheck(value, bias)


def test_without_a_gate_the_network_stays_as_it_was():
    dac = DacKL(DacKLConfig(hidden=4, gate="none"), 12, seed=3)
    run(dac, log_rows(23).requires_grad_(), log_rows(24))
    assert list(dac.parameters()) and all(p.grad is None and not p.requires_grad for p in dac.parameters())


@every_example
def test_the_student_hears_nothing_through_the_network(config):
    dac, logits, logp_NV = DacKL(config, 12, seed=4).double(), log_rows(25).requires_grad_(), log_rows(26)
    _, rows = run(dac, logits, logp_NV)
    if config.gate == "soft":
        with torch.no_grad():
            ends = dac._interval(logp_NV.exp(), None, torch.log_softmax(logits, dim=-1))
            gate_NV = dac._gate(logp_NV, None, *ends, logp_NV.argmax(dim=-1, keepdim=True))
    else:
        gate_NV = keep_mask(logp_NV, rows["lower"], rows["upper"], config.mode, config.keep_target)
    alone = logits.detach().clone().requires_grad_()
    clipped_divergence(torch.log_softmax(alone, dim=-1), logp_NV, gate_NV, config.normalise).sum().backward()
    torch.testing.assert_close(logits.grad, alone.grad)


@every_example
def test_the_teacher_gets_no_gradient(config):
    logp_NV = log_rows(27).requires_grad_()
    run(DacKL(config, 12, seed=5), log_rows(28).requires_grad_(), logp_NV)
    assert logp_NV.grad is None


def test_a_mass_floor_raises_the_kept_mass_that_falls_without_it():
    logq_NV, logp_NV = log_rows(29), log_rows(30)

    def change(mass_floor: float | None) -> float:
        dac = DacKL(DacKLConfig(hidden=4, lower_bias=-2.5, mass_floor=mass_floor), 12, seed=6).double()
        optimizer = torch.optim.Adam(dac.parameters(), lr=0.05)
        masses = []
        for _ in range(40):
            divergence_N, rows = dac(logq_NV, logp_NV)
            masses.append(rows["kept_mass"].mean().item())
            optimizer.zero_grad()
            divergence_N.sum().backward()
            optimizer.step()
        return masses[-1] - masses[0]

    assert change(0.95) > 0.01
    assert change(None) < -0.01


def test_the_penalty_is_ten_times_the_squared_shortfall():
    logq_NV, logp_NV = log_rows(31), log_rows(32)
    (with_floor, rows), (without, _) = (
        DacKL(DacKLConfig(hidden=4, lower_bias=-1.0, mass_floor=floor), 12, seed=7)(logq_NV, logp_NV) for floor in (0.9, None)
    )
    kept_mass = rows["kept_mass"].double()
    torch.testing.assert_close(with_floor - without, 10 * (0.9 - kept_mass).clamp(min=0) ** 2, atol=1e-6, rtol=1e-5)
    assert (kept_mass < 0.9).any()


def test_a_fixed_interval_has_nothing_to_learn():
    dac = DacKL(DacKLConfig(fixed_interval=(0.05, 0.4)), 12, seed=8)
    logq_NV, logp_NV = log_rows(33), log_rows(34)
    divergence_N, rows = dac(logq_NV, logp_NV)
    keep_NV = keep_mask(logp_NV, torch.full((6,), 0.05).double(), torch.full((6,), 0.4).double())
    assert not list(dac.parameters())
    torch.testing.assert_close(divergence_N, clipped_divergence(logq_NV, logp_NV, keep_NV))
    assert rows["kept_classes"].tolist() == keep_NV.sum(dim=-1).tolist()


def test_the_rows_say_what_was_kept():
    logp_NV = torch.tensor([[0.6, 0.3, 0.1], [0.45, 0.45, 0.1], [0.2, 0.1, 0.7]]).log()
    _, rows = DacKL(DacKLConfig(fixed_interval=(0.15, 0.5)), 3, seed=9)(log_rows(35, 3, 3), logp_NV)
    torch.testing.assert_close(rows["kept_mass"], torch.tensor([0.9, 0.9, 0.9]))
    assert rows["kept_classes"].tolist() == [2, 2, 2]
    assert rows["target_only"].tolist() == [0, 0, 0]
    assert {row_N.dtype for row_N in rows.values()} == {torch.float32}
    _, rows = DacKL(DacKLConfig(fixed_interval=(0.05, 0.25), keep_target=False), 3, seed=9)(log_rows(35, 3, 3), logp_NV)
    assert rows["kept_classes"].tolist() == [1, 1, 2]
    assert rows["target_only"].tolist() == [0, 0, 0]  # one class, but not the arg max


def test_zero_biases_start_with_the_target_alone():
    _, rows = DacKL(DacKLConfig(upper_bias=0.0, lower_bias=0.0), 12, seed=10)(log_rows(36), log_rows(37))
    assert rows["target_only"].tolist() == [1] * 6


@every_example
def test_rows_do_not_depend_on_their_chunk(config):
    dac, logq_NV, logp_NV = DacKL(config, 12, seed=11).double(), log_rows(38), log_rows(39)
    whole, whole_rows = dac(logq_NV, logp_NV)
    for n in range(6):
        part, part_rows = dac(logq_NV[n : n + 1], logp_NV[n : n + 1])
        torch.testing.assert_close(part, whole[n : n + 1])
        torch.testing.assert_close(part_rows, {name: row_N[n : n + 1] for name, row_N in whole_rows.items()})


@pytest.mark.parametrize("config", [*DacKLConfig.examples(), DacKLConfig(fixed_interval=(0.0, 1.0), gate="soft")], ids=repr)
def test_ruled_out_classes_and_extreme_logits_stay_finite(config):
    dac = DacKL(config, 4, seed=12)
    logits = torch.tensor([[0.0, 1e4, -1e4, 0.0], [1.0, 2.0, 0.0, -INF], [0.0, 0.0, 0.0, -INF]]).requires_grad_()
    teacher = torch.tensor([[1e4, 0.0, -1e4, 0.0], [0.0, 1.0, -INF, -INF], [5.0, 1.0, 0.0, 0.0]])
    divergence_N, rows = run(dac, logits, torch.log_softmax(teacher, dim=-1))
    everything = [divergence_N, logits.grad, *rows.values(), *(p.grad for p in dac.parameters() if p.requires_grad)]
    assert all(tensor.isfinite().all() for tensor in everything)


@every_example
def test_half_precision_inputs_are_computed_in_single(config):
    divergence_N, _ = DacKL(config, 12, seed=13)(log_rows(40).bfloat16(), log_rows(41).bfloat16())
    assert divergence_N.dtype == torch.float32


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"mode": "rank"}, "mode = 'rank': must be one of value, mass"),
        ({"normalise": "both"}, "normalise = 'both': must be one of none, renormalise, other_bin, teacher"),
        ({"gate": "hard"}, "gate = 'hard': must be one of straight_through, soft, none"),
        ({"hidden": 0}, "hidden = 0: must be at least 1"),
        ({"upper_bias": INF}, "upper_bias = inf: must be finite"),
        ({"gate_temperature": 0.0}, "gate_temperature = 0.0: must be above 0"),
        ({"fixed_interval": (0.5, 0.2)}, r"fixed_interval = \(0.5, 0.2\): must be 0 <= lower <= upper <= 1"),
        ({"mass_floor": 1.0}, r"mass_floor = 1.0: must lie in \(0, 1\)"),
        ({"mass_floor": float("nan")}, r"mass_floor = nan: must lie in \(0, 1\)"),
        ({"mass_floor": 0.9, "gate": "none"}, "mass_floor = 0.9: needs a network that learns"),
        ({"mass_floor": 0.9, "fixed_interval": (0.0, 1.0)}, "mass_floor = 0.9: needs a network that learns"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(setting, message):
    with pytest.raises(ConfigError, match=message):
        DacKLConfig(**setting)
