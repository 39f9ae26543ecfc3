"""docs/walkthrough.md is a script whose update is the one that the package makes of the same prompts."""

import contextlib
import copy
import io
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from redistill.config.methods import METHODS
from redistill.contracts import Batch, Draw, Example
from redistill.policies import GoldBatches, Mixed, Policy, PolicyTools
from redistill.processes.placement import Single
from redistill.testing.fixture import make_fixture
from redistill.training.curriculum import Curriculum
from redistill.training.loop import accumulate_gradients, cut, global_counts
from redistill.training.objective import averages
from redistill.training.parts import Learner

PAGE = (Path(__file__).parents[1] / "docs/walkthrough.md").read_text(encoding="utf-8")
SCRIPT = "".join(re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))


@pytest.fixture(scope="module")
def script() -> SimpleNamespace:
    """The names of the script after it ran, `printed`, and the `start` of the student, before its update."""
    names: dict[str, Any] = {}
    begin, update = SCRIPT.split("optimiser = OptimiserConfig()")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(begin, names)  # noqa: S102 - our own page
        start = copy.deepcopy(names["student"])
        exec(f"optimiser = OptimiserConfig(){update}", names)  # noqa: S102 - our own page
    return SimpleNamespace(**names, printed=printed.getvalue(), start=start)


def policy_of(script: SimpleNamespace) -> Policy:
    """MGSR's policy of the package on the prompts of the script, with the student as it was before the update."""
    examples = [
        Example(
            sample=each.sample,
            record=make_fixture().examples[0].record,  # read by no part of the policy
            prompt_ids=each.prompt_ids,
            token_ids=each.token_ids,
            supervised=each.supervised,
        )
        for each in script.gold
    ]
    student = script.start.eval()
    gold = GoldBatches(examples, batch_size=len(examples), seed=script.SEED)
    tools = PolicyTools(
        engine=script.LocalEngine(
            student.model,
            vocabulary=len(script.WORDS),
            end_ids=[script.END],
            pad_id=script.END,
            batch_size=script.Halving("batch_size", 16),
        ),
        scorer=script.Scorer(torch.no_grad()(student.rows), script.teacher, pad_id=script.END, batch_size=16),
        gold=gold,
        updates=script.UPDATES,
        end_ids=(script.END,),
        response_tokens=script.RESPONSE_TOKENS,
        batch_size=16,
        seed=script.SEED,
    )
    marker = script.SpanMarker(script.load_extractor("simple"), script.Words(), [script.END])
    node = METHODS["mgsr"].policy
    assert isinstance(node, Mixed)
    return Policy(gold, node.bind(tools), marker)


def read(draw: Draw) -> dict[tuple[int, ...], tuple[Any, ...]]:
    """What is learned from a draw, in an order of its own: roles, targets, origin and spans by token ids."""
    return {
        item.sequence.token_ids: (item.roles, item.sequence.supervised, item.sequence.origin, item.sequence.spans)
        for item in draw.items
    }


def test_the_error_token_is_replaced_by_the_teachers(script):
    assert len(script.drafts) == 2
    for draft, after, error, teacher_T, kl_N in zip(
        script.drafts, script.revised, script.errors, script.teacher_BT, script.found["reverse_kl"], strict=True
    ):
        differs_N = torch.tensor(draft.response_ids) != teacher_T[: draft.num_targets]
        assert error == int(kl_N.where(differs_N, -1.0).argmax())
        assert after.response_ids[: error + 1] == (*draft.response_ids[:error], int(teacher_T[error]))
        assert after.origin == "revised"
        assert len(after.response_ids) <= script.RESPONSE_TOKENS


def test_the_sequences_are_those_of_the_packages_policy(script):
    assert read(Draw(items=tuple(script.items))) == read(policy_of(script).draw(script.STEP))


def test_the_loss_is_the_weighted_sum_of_its_terms(script):
    counts, sums = script.counts, {name: float(value) for name, value in script.sums.items()}
    parts = [
        sums["sft"] / counts.sft_tokens,
        sums["divergence"] / counts.sampled_tokens,
        sums["span"] / counts.span_samples,
    ]
    assert all(part > 0 for part in parts)
    assert script.loss.item() == pytest.approx(sum(parts), rel=1e-6)


def test_student_and_clip_network_move(script):
    after = script.student.state_dict()
    moved = {name for name, before in script.start.state_dict().items() if not torch.equal(before, after[name])}
    assert {name.partition(".")[0] for name in moved} == {"model", "clip_network"}


def parts_of(script: SimpleNamespace) -> Any:
    """What the loop needs for an update of the script's student as it was before."""
    student = copy.deepcopy(script.start)
    groups = script.parameter_groups(student, student.clip_network, script.optimiser)
    learner = Learner(
        student=student,
        placement=Single(),
        optimizer=torch.optim.AdamW(groups, betas=script.optimiser.betas),
        objective=METHODS["mgsr"].objective,
        teacher=script.teacher,
        curriculum=Curriculum(None, updates=1),
    )
    accelerator = SimpleNamespace(device="cpu", autocast=contextlib.nullcontext, backward=torch.Tensor.backward)
    return SimpleNamespace(learner=learner, accelerator=accelerator, pad_id=script.END)


def update(script: SimpleNamespace, batches: list[Batch]) -> nn.Module:
    """The student after the loop's update on these micro-batches, its clipped gradients still in place."""
    parts = parts_of(script)
    counts = global_counts(batches)
    sums = accumulate_gradients(batches, counts, parts)
    assert sums is not None
    loss = averages(parts.learner.objective, counts, sums)["loss"]
    assert counts == script.counts
    assert loss == pytest.approx(script.loss.item(), rel=1e-6)
    student = parts.learner.student
    for module in (student.model, student.clip_network):
        script.clip_gradients(module.parameters(), script.optimiser.max_grad_norm)
    script.set_learning_rates(parts.learner.optimizer, script.optimiser, script.STEP, script.UPDATES)
    parts.learner.optimizer.step()
    return student


def test_the_training_loop_makes_the_same_update(script):
    weights = update(script, [script.batch]).state_dict()
    for name, weight in script.student.state_dict().items():
        torch.testing.assert_close(weights[name], weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize("micro_batch_size", [None, 1, 2])
def test_the_training_loop_takes_the_same_gradient_in_any_micro_batches(script, micro_batch_size):
    parts = parts_of(script)
    draw = parts.learner.objective.select(Draw(items=tuple(script.items)))
    batches = cut(draw, micro_batch_size, parts)
    assert (len(batches) == 1) == (micro_batch_size is None)
    gradients = {name: weight.grad for name, weight in update(script, batches).named_parameters()}
    for name, weight in script.student.named_parameters():
        torch.testing.assert_close(gradients[name], weight.grad, rtol=1e-5, atol=1e-7)


def test_the_page_shows_what_the_script_prints(script):
    (shown,) = re.findall(r"<!-- results:walkthrough -->\n```text\n(.*?)```", PAGE, re.DOTALL)

    def shape(text: str) -> str:
        return re.sub(r"\d+\.\d+", "#", text)

    assert shape(script.printed) == shape(shown)
