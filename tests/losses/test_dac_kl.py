"""DAC-KL: gradients through the gates, the effect of each setting, and compiled code."""

import shutil
from dataclasses import dataclass
from typing import ClassVar, get_args

import numpy as np
import pytest
import torch

from redistill.errors import ConfigError
from redistill.losses.clip_network import ClipNetworkConfig, SortedInput
from redistill.losses.clip_ranks import Mode, keep_mask, score_bounds
from redistill.losses.dac_kl import DacKL, DacKLConfig, clipped_divergence, dropped_above, recovered
from redistill.testing import check_divergence

every_mode = pytest.mark.parametrize("mode", get_args(Mode))
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


# --- DacKL --------------------------------------------------------------------------------------------------------------


def network_gradient(config: DacKLConfig, logits: torch.Tensor, logp_NV: torch.Tensor) -> torch.Tensor:
    dac = DacKL(config, logp_NV.shape[-1], seed=1).double()
    run(dac, logits.clone().requires_grad_(), logp_NV)
    return torch.cat([parameter.grad.flatten() for parameter in dac.parameters()])


@every_mode
def test_straight_through_has_the_gradient_of_the_soft_gate(mode):
    # The literal form is linear in the gate, so the two gradients agree although the two values do not.
    network = ClipNetworkConfig(hidden=4, upper_bias=2.0, lower_bias=-2.0)
    hard, soft = (DacKLConfig(network=network, mode=mode, gate=gate) for gate in ("straight_through", "soft"))
    logits, logp_NV = log_rows(19), log_rows(20)
    wanted = network_gradient(soft, logits, logp_NV)
    assert wanted.abs().max() > 0
    torch.testing.assert_close(network_gradient(hard, logits, logp_NV), wanted)


@every_mode
@pytest.mark.parametrize(
    "switches",
    [{}, {"keep_target": False}, {"target_twice": True}, {"normalise": "other_bin"}],
    ids=repr,
)
def test_soft_gate_has_the_gradient_of_finite_differences(mode, switches):
    network = ClipNetworkConfig(hidden=3, upper_bias=2.0, lower_bias=-2.0)
    config = DacKLConfig(network=network, mode=mode, gate="soft", **switches)
    dac = DacKL(config, 12, seed=2).double()
    logq_NV, logp_NV, bias = log_rows(21), log_rows(22), dac.network.output_bias.detach().clone().requires_grad_()

    def value(output_bias):
        return torch.func.functional_call(dac, {"network.output_bias": output_bias}, (logq_NV, logp_NV))[0]

    assert torch.autograd.gradcheck(value, bias)
    assert torch.autograd.grad(value(bias).sum(), bias)[0].abs().min() > 0, "both ends have something to learn from"


def soft_oracle(q: np.ndarray, p: np.ndarray, lower: float, upper: float, mode: str, temperature: float) -> np.ndarray:
    """The gates in NumPy: two sigmoids, in the logarithm of the score, or in mass."""
    order = np.argsort(-p, kind="stable")
    if mode == "mass":
        score, low, high = np.empty_like(p), lower, upper
        score[order] = np.concatenate([[0.0], np.cumsum(p[order])[:-1]])
    elif mode == "entry_quantile":
        score, low, high = np.empty_like(p), np.log(1 - upper), np.log(1 - lower)
        score[order] = np.log((np.arange(len(p)) + 0.5) / len(p))
    else:
        score, low, high = np.log(p / (p.max() if mode == "relative" else 1.0)), np.log(lower), np.log(upper)
    return 1 / (1 + np.exp(-(score - low) / temperature)) / (1 + np.exp(-(high - score) / temperature))


@every_mode
@pytest.mark.parametrize("twice", [False, True])
def test_the_soft_divergence_is_that_of_the_definition(mode, twice):
    logq_NV, logp_NV = log_rows(50), log_rows(51)
    network = ClipNetworkConfig(upper_bias=2.0, lower_bias=-2.0)
    config = DacKLConfig(network=network, mode=mode, gate="soft", target_twice=twice, gate_temperature=0.3)
    dac = DacKL(config, 12, seed=3).double()
    divergence_N, _ = dac(logq_NV, logp_NV)
    _, *ends = dac._interval(logq_NV, logp_NV, logp_NV.exp())  # the diagnostics of `dac` are float32
    lower_N, upper_N = (end.detach().numpy() for end in ends)
    q_NV, p_NV = logq_NV.exp().numpy(), logp_NV.exp().numpy()
    for n, (q, p) in enumerate(zip(q_NV, p_NV, strict=True)):
        alone = soft_oracle(q, p, lower_N[n], upper_N[n], mode, 0.3)
        gate = np.where(np.arange(12) == p.argmax(), 1.0, alone)
        weight = gate + twice * alone * (np.arange(12) == p.argmax())
        wanted = (weight * p * np.log(p / q)).sum()
        assert divergence_N[n].item() == pytest.approx(wanted, rel=0, abs=1e-8)


@pytest.mark.parametrize(("interval", "weight"), [((0.05, 0.9), 2.0), ((0.05, 0.4), 1.0)])
def test_the_target_counts_twice_only_where_the_interval_holds_it(interval, weight):
    logp_NV, logq_NV = torch.tensor([[0.6, 0.3, 0.09, 0.01]]).double().log(), log_rows(52, 1, 4)
    divergence_N, rows = DacKL(DacKLConfig(fixed_interval=interval, target_twice=True), 4)(logq_NV, logp_NV)
    terms = (logp_NV.exp() * (logp_NV - logq_NV))[0]
    torch.testing.assert_close(divergence_N[0], weight * terms[0] + terms[1] + terms[2])
    assert rows["kept_classes"].tolist() == [3] and rows["kept_mass"].item() == pytest.approx(0.99)


def test_without_a_gate_the_network_stays_as_it_was():
    dac = DacKL(DacKLConfig(gate="none"), 12, seed=3)
    run(dac, log_rows(23).requires_grad_(), log_rows(24))
    assert list(dac.parameters()) and all(p.grad is None and not p.requires_grad for p in dac.parameters())


@every_example
def test_no_gradient_reaches_the_student_through_the_network(config):
    dac, logits, logp_NV = DacKL(config, 12, seed=4).double(), log_rows(25).requires_grad_(), log_rows(26)
    _, rows = run(dac, logits, logp_NV)
    if config.gate == "soft":
        with torch.no_grad():
            score_NV, *interval = dac._interval(torch.log_softmax(logits, dim=-1), logp_NV, logp_NV.exp())
            ends = score_bounds(*interval, config.mode)
            gate_NV = dac._gate(score_NV, logp_NV, None, ends, logp_NV.argmax(dim=-1, keepdim=True))
    else:
        gate_NV = keep_mask(logp_NV, rows["lower"], rows["upper"], config.mode, config.keep_target).double()
    if config.target_twice:
        inside_NV = keep_mask(logp_NV, rows["lower"], rows["upper"], config.mode, keep_target=False)
        gate_NV = gate_NV + inside_NV * (logp_NV == logp_NV.amax(dim=-1, keepdim=True))
    alone = logits.detach().clone().requires_grad_()
    clipped_divergence(torch.log_softmax(alone, dim=-1), logp_NV, gate_NV, config.normalise).sum().backward()
    torch.testing.assert_close(logits.grad, alone.grad)


@dataclass(frozen=True)
class Term:
    """DAC-KL with a new clip network, without its diagnostics."""

    config: DacKLConfig
    disobeys: ClassVar[dict[str, str]] = {
        "zero_when_equal": "normalise = 'teacher' normalises one of the two distributions only",
        "positive_when_a_class_differs": "the kept classes need not have all the mass",
        "excluded_classes_have_no_effect": "positions in the sorted vocabulary are quantiles of its size",
        "nan_is_propagated": "classes that are not kept are not used",
        "zero_gradient_when_equal": "the gradient of the literal form is 0 at the teacher renormalised on the kept classes",
    }

    def __call__(self, logq_NV: torch.Tensor, logp_NV: torch.Tensor) -> torch.Tensor:
        return DacKL(self.config, logq_NV.shape[-1], seed=5)(logq_NV, logp_NV)[0]


@every_example
def test_the_laws_of_divergences_that_clipping_keeps(config):
    check_divergence(Term(config))


@every_mode
def test_a_fixed_interval_has_nothing_to_learn(mode):
    dac = DacKL(DacKLConfig(mode=mode, fixed_interval=(0.05, 0.4)), 12, seed=8)
    logq_NV, logp_NV = log_rows(33), log_rows(34)
    divergence_N, rows = dac(logq_NV, logp_NV)
    keep_NV = keep_mask(logp_NV, torch.full((6,), 0.05).double(), torch.full((6,), 0.4).double(), mode)
    assert not list(dac.parameters())
    torch.testing.assert_close(divergence_N, clipped_divergence(logq_NV, logp_NV, keep_NV))
    assert rows["kept_classes"].tolist() == keep_NV.sum(dim=-1).tolist()


def test_the_diagnostics_describe_the_kept_classes():
    logp_NV = torch.tensor([[0.6, 0.3, 0.1], [0.45, 0.45, 0.1], [0.2, 0.1, 0.7]]).log()
    _, rows = DacKL(DacKLConfig(fixed_interval=(0.15, 0.5)), 3, seed=9)(log_rows(35, 3, 3), logp_NV)
    torch.testing.assert_close(rows["kept_mass"], torch.tensor([0.9, 0.9, 0.9]))
    torch.testing.assert_close(rows["top_mass"], torch.tensor([0.6, 0.45, 0.7]))
    assert rows["kept_classes"].tolist() == [2, 2, 2]
    assert rows["target_only"].tolist() == [0, 0, 0]
    assert {row_N.dtype for row_N in rows.values()} == {torch.float32}
    _, rows = DacKL(DacKLConfig(fixed_interval=(0.05, 0.25), keep_target=False), 3, seed=9)(log_rows(35, 3, 3), logp_NV)
    assert rows["kept_classes"].tolist() == [1, 1, 2]
    assert rows["target_only"].tolist() == [0, 0, 0]  # one class, but not the arg max
    torch.testing.assert_close(rows["kept_top_mass"], torch.tensor([0.0, 0.0, 0.0]))
    assert recovered({name: float(row_N[1]) for name, row_N in rows.items()}) == pytest.approx(0.1 / 0.55)


def test_the_mass_dropped_above_a_kept_class_is_0_for_the_most_probable_classes_and_high_for_tail_and_arg_max():
    p_NV = torch.log_softmax(log_rows(46, 5, 40), dim=-1).exp()
    rank_NV = p_NV.argsort(dim=-1, descending=True).argsort(dim=-1)
    assert dropped_above(p_NV, rank_NV < 7).tolist() == [0] * 5
    tail_and_top = (rank_NV == 0) | (rank_NV >= 7)
    torch.testing.assert_close(dropped_above(p_NV, tail_and_top), (p_NV * ((rank_NV > 0) & (rank_NV < 7))).sum(dim=-1))
    assert dropped_above(p_NV, torch.zeros_like(p_NV, dtype=torch.bool)).tolist() == [0] * 5


@pytest.mark.parametrize("vocabulary", [7, 50_257])
def test_a_fixed_top_keeps_at_most_that_number_of_classes(vocabulary):
    logp_NV = torch.log_softmax(log_rows(42, 3, vocabulary).float(), dim=-1)
    for top in (1, 7, 200):
        dac = DacKL(DacKLConfig(mode="entry_quantile", fixed_top=top), vocabulary)
        kept = min(top, vocabulary)
        _, rows = dac(logp_NV, logp_NV)
        assert rows["kept_classes"].tolist() == [kept] * 3 and not list(dac.parameters())
        assert rows["lower"].min() >= 0 and rows["upper"].max() <= 1
        torch.testing.assert_close(rows["kept_mass"], logp_NV.exp().topk(kept).values.sum(dim=-1))


@every_mode
def test_each_mode_starts_with_most_of_the_mass_of_a_teacher_that_is_sure(mode):
    logp_NV = torch.log_softmax(-2.5 * torch.arange(1, 50_258).double().log(), dim=-1).float().expand(3, -1)
    _, rows = DacKL(DacKLConfig(mode=mode), 50_257, seed=1)(logp_NV, logp_NV)
    assert rows["kept_mass"].min() > 0.95
    assert rows["kept_classes"].min() > 3


@every_example
def test_the_kept_classes_are_available_separately(config):
    dac, logq_NV, logp_NV = DacKL(config, 12, seed=4), log_rows(43), log_rows(44)
    keep_NV = dac.kept(logq_NV, logp_NV)
    _, rows = dac(logq_NV, logp_NV)
    assert keep_NV.dtype == torch.bool and 0 < keep_NV.sum() < keep_NV.numel()
    torch.testing.assert_close(keep_NV.sum(dim=-1).float(), rows["kept_classes"])
    torch.testing.assert_close((keep_NV * logp_NV.exp()).sum(dim=-1).float(), rows["kept_mass"])


def test_zero_biases_start_with_the_target_alone():
    _, rows = DacKL(DacKLConfig(network=ClipNetworkConfig(upper_bias=0.0, lower_bias=0.0)), 12, seed=10)(
        log_rows(36), log_rows(37)
    )
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


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"mode": "rank"}, "mode = 'rank': must be one of value, relative, mass, entry_quantile"),
        ({"normalise": "both"}, "normalise = 'both': must be one of none, renormalise, other_bin, teacher"),
        ({"gate": "hard"}, "gate = 'hard': must be one of straight_through, soft, none"),
        ({"gate_temperature": 0.0}, "gate_temperature = 0.0: must be above 0"),
        ({"fixed_interval": (0.5, 0.2)}, r"fixed_interval = \(0.5, 0.2\): must satisfy 0 <= lower <= upper <= 1"),
        ({"fixed_top": 0, "mode": "entry_quantile"}, "fixed_top = 0: must be at least 1"),
        ({"fixed_top": 200}, "fixed_top = 200: needs mode entry_quantile"),
        ({"fixed_top": 2, "mode": "entry_quantile", "fixed_interval": (0.0, 1.0)}, "fixed_top = 2: needs mode entry_quantile"),
        ({"target_twice": True, "normalise": "teacher"}, "target_twice = True: needs normalise: none and keep_target: true"),
        ({"target_twice": True, "keep_target": False}, "target_twice = True: needs normalise: none and keep_target: true"),
    ],
)
def test_a_setting_out_of_range_is_rejected_by_name(setting, message):
    with pytest.raises(ConfigError, match=message):
        DacKLConfig(**setting)


@pytest.mark.parametrize("vocabulary", [1, 511, 512, 513, 520, 528])
def test_up_to_528_classes_the_compact_form_is_the_exact_one(vocabulary):
    logq_NV, logp_NV = log_rows(60, 3, vocabulary).float(), log_rows(61, 3, vocabulary).float()
    results = []
    for reading in get_args(SortedInput):
        dac = DacKL(DacKLConfig(network=ClipNetworkConfig(hidden=4, sorted=reading)), vocabulary, seed=3)
        logits = logq_NV.clone().requires_grad_()
        divergence_N, rows = run(dac, logits, logp_NV)
        results.append([divergence_N, logits.grad, *rows.values(), *(parameter.grad for parameter in dac.parameters())])
    torch.testing.assert_close(*results)


# --- compiled -----------------------------------------------------------------------------------------------------------


def values_and_gradients(function, dac: DacKL, logits: torch.Tensor, logp_NV: torch.Tensor) -> list[torch.Tensor]:
    """Values and gradients of the divergence and its rows under `function`, from student logits."""
    leaf, parameters = logits.clone().requires_grad_(), [p for p in dac.parameters() if p.requires_grad]
    divergence_N, rows = function(leaf, logp_NV)
    return [divergence_N.detach(), *rows.values(), *torch.autograd.grad(divergence_N.sum(), [leaf, *parameters])]


def assert_compiled_equals_plain(config: DacKLConfig, vocabulary: int, backend: str) -> None:
    dac = DacKL(config, vocabulary, seed=14)
    logits, logp_NV = log_rows(70, 5, vocabulary).float(), log_rows(71, 5, vocabulary).float()

    def from_logits(logits_NV, logp_NV):
        return dac(torch.log_softmax(logits_NV, dim=-1), logp_NV)

    torch._dynamo.reset()  # one function is compiled at most eight times in a process
    compiled = torch.compile(from_logits, fullgraph=True, dynamic=False, backend=backend)
    wanted = values_and_gradients(from_logits, dac, logits, logp_NV)
    torch.testing.assert_close(values_and_gradients(compiled, dac, logits, logp_NV), wanted, rtol=1e-5, atol=1e-6)


@every_example
def test_every_reading_is_traced_without_a_break_with_its_gradients(config):
    assert_compiled_equals_plain(config, 12, "aot_eager")


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_code_equals_plain_code():
    network = ClipNetworkConfig(hidden=4, upper_bias=2.0, lower_bias=-2.0)
    assert_compiled_equals_plain(DacKLConfig(network=network), 9000, "inductor")
