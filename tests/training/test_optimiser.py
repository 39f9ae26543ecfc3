"""AdamW: learning rates by step, and which parameters decay."""

import pytest
import torch
from torch import nn
from transformers import get_scheduler

from redistill.losses.dac_kl import DacKL, DacKLConfig
from redistill.models.student import StudentModule
from redistill.training.optimiser import OptimiserConfig, parameter_groups, set_learning_rates

# --- learning rates -----------------------------------------------------------------------------------------------------


def rates(config, updates, steps=None):
    """The student's learning rate for each update."""
    parameter = nn.Parameter(torch.zeros(2, 2))
    groups = [{"params": [parameter], "peak_learning_rate": config.learning_rate, "rate_name": "learning_rate"}]
    optimizer = torch.optim.AdamW(groups)
    found = []
    for step in range(updates) if steps is None else steps:
        logged = set_learning_rates(optimizer, config, step, updates)
        assert optimizer.param_groups[0]["lr"] == logged["learning_rate"]
        found.append(logged["learning_rate"])
    return found


def test_the_cosine_starts_at_the_peak_is_half_way_in_the_middle_and_ends_low():
    config = OptimiserConfig(learning_rate=1e-3, final_learning_rate=1e-5)
    found = rates(config, 100, steps=[0, 50, 100])
    assert found == pytest.approx([1e-3, (1e-3 + 1e-5) / 2, 1e-5])


def test_the_cosine_equals_that_of_torch():
    config = OptimiserConfig(learning_rate=2e-3, final_learning_rate=1e-4)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=30, eta_min=1e-4)
    expected = []
    for _ in range(30):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates(config, 30) == pytest.approx(expected, rel=1e-9)


def test_a_constant_rate_stays():
    assert rates(OptimiserConfig(learning_rate=1e-3, schedule="constant"), 5) == [1e-3] * 5


def test_warm_up_is_linear():
    config = OptimiserConfig(learning_rate=1.0, final_learning_rate=0.0, schedule="constant", warmup_updates=4)
    assert rates(config, 6) == pytest.approx([0, 0.25, 0.5, 0.75, 1.0, 1.0])


@pytest.mark.parametrize("warmup", [0, 1, 7, 29])
@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_schedules_equal_those_of_transformers(schedule, warmup):
    config = OptimiserConfig(learning_rate=2e-3, final_learning_rate=0.0, schedule=schedule, warmup_updates=warmup)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2e-3)
    theirs = get_scheduler(
        {"constant": "constant_with_warmup"}.get(schedule, schedule), optimizer, num_warmup_steps=warmup, num_training_steps=30
    )
    expected = []
    for _ in range(30):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert rates(config, 30) == pytest.approx(expected, rel=1e-12, abs=1e-18)


def test_a_rate_is_a_function_of_the_step_only():
    config = OptimiserConfig(warmup_updates=3)
    straight = rates(config, 20)
    assert rates(config, 20, steps=[7, 3, 19]) == [straight[7], straight[3], straight[19]]


def test_the_clip_network_has_a_rate_of_its_own():
    student = student_module()
    config = OptimiserConfig(learning_rate=1e-3, clip_network_learning_rate=1e-2, final_learning_rate=0.0)
    optimizer = torch.optim.AdamW(parameter_groups(student, student.clip_network, config))
    assert set_learning_rates(optimizer, config, 0, 10) == {"learning_rate": 1e-3, "clip_network_learning_rate": 1e-2}
    at_half = set_learning_rates(optimizer, config, 5, 10)
    assert at_half == pytest.approx({"learning_rate": 5e-4, "clip_network_learning_rate": 5e-3})


# --- parameters ---------------------------------------------------------------------------------------------------------


def student_module():
    body = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    body[0].bias.requires_grad_(False)
    return StudentModule(body, vocabulary=4, divergence=DacKL(DacKLConfig(), 4, 0))


def test_matrices_decay_vectors_do_not_and_each_parameter_is_in_one_group():
    student = student_module()
    groups = parameter_groups(student, student.clip_network, OptimiserConfig(weight_decay=0.1))
    placed = {id(p): group for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(placed)
    for name, parameter in student.named_parameters():
        if not parameter.requires_grad:
            assert id(parameter) not in placed
            continue
        group = placed[id(parameter)]
        assert group["weight_decay"] == (0.1 if parameter.ndim >= 2 else 0.0)
        expected = "clip_network_learning_rate" if name.startswith("clip_network.") else "learning_rate"
        assert group["rate_name"] == expected


def test_without_its_own_rate_the_clip_network_uses_the_students():
    student = student_module()
    groups = parameter_groups(student, student.clip_network, OptimiserConfig(learning_rate=3e-4))
    assert {group["peak_learning_rate"] for group in groups} == {3e-4}
