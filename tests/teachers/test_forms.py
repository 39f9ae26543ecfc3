"""Compact forms of a cached teacher: top-k classes with the rest, and sampled classes whose gradient has no bias."""

import math
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from redistill.contracts import SampledClasses, TeacherTarget, TopClasses, items_of
from redistill.data.collate import collate
from redistill.errors import ConfigError
from redistill.losses.divergences import Divergence, ForwardKL
from redistill.models.families import head
from redistill.randomness import generator
from redistill.teachers import filling, forms
from redistill.teachers.cached import CachedTeacher
from redistill.teachers.filling import Plan, StoreWriter
from redistill.teachers.forms import CompactForm, Form, Full, Sampled, TopK, described, form_from
from redistill.teachers.local import LocalTeacher
from redistill.teachers.store import TeacherStore
from redistill.training.objective import Objective
from tests.teachers.test_cached import VOCABULARY, loss_and_gradient, model, reader, sequences

DRAWS_OF_THE_MEAN, LEAST_P = 1000, 0.001


def compact(folder: Path, form: CompactForm, vocabulary: int = VOCABULARY) -> TeacherStore:
    """The store of a small teacher in a compact form."""
    folder.mkdir()
    teacher = model("llama")
    filler = reader(teacher, torch.float32, form=form, classifier=head(teacher, vocabulary))
    StoreWriter(folder, {}).states(Plan(sequences(), filler.row_bytes), filler, lambda done, total, tokens: None)
    return TeacherStore.open(folder, report=pytest.fail)


def log_probabilities(num_rows: int, num_classes: int, key: str) -> torch.Tensor:
    numbers = generator(3, "forms-test", key).normal(size=(num_rows, num_classes))
    return torch.from_numpy(numbers).log_softmax(dim=-1)


# --- unbiased estimates -------------------------------------------------------------------------------------------------


def p_value_of_the_largest(samples: np.ndarray, expected: np.ndarray) -> float:
    """The probability of a largest |z| this high, if the mean of every column is the expected one (Sidak)."""
    error = samples.std(axis=0, ddof=1) / math.sqrt(len(samples))
    largest = float(np.abs((samples.mean(axis=0) - expected) / error).max())
    return 1 - (1 - math.erfc(largest / math.sqrt(2))) ** samples.shape[1]


def gradient(logits_NV: torch.Tensor, target: SampledClasses) -> tuple[float, np.ndarray]:
    """The sum of forward KL over the rows, and its gradient with respect to the student's logits."""
    leaf_NV = logits_NV.clone().requires_grad_()
    logq_NK = leaf_NV.log_softmax(dim=-1).gather(1, target.class_NK)
    loss = ForwardKL().of_samples(logq_NK, target.weight_NK.double(), target.entropy_N.double()).sum()
    loss.backward()
    return float(loss.detach()), leaf_NV.grad.numpy().ravel()


def renormalised(logp_NV: torch.Tensor) -> SampledClasses:
    """The three most probable classes with their probabilities divided by their sum, as other programs use them."""
    top = logp_NV.exp().topk(3)
    return SampledClasses(top.indices, top.values / top.values.sum(dim=-1, keepdim=True), torch.zeros(len(logp_NV)))


@pytest.mark.parametrize("power", [0.6, 1.0, 1.4])
def test_the_mean_loss_and_gradient_of_sampled_targets_are_the_dense_ones(power: float) -> None:
    logp_NV, logits_NV = log_probabilities(4, 11, "teacher"), log_probabilities(4, 11, "student")
    form = Sampled(draws=6, power=power)
    losses, gradients = [], []
    for number in range(DRAWS_OF_THE_MEAN):
        random = [generator(7, "mean", number)] * len(logp_NV)
        loss, found = gradient(logits_NV, form.classes(form.stored(logp_NV, random)))
        losses.append([loss])
        gradients.append(found)
    leaf_NV = logits_NV.clone().requires_grad_()
    dense = ForwardKL()(leaf_NV.log_softmax(dim=-1), logp_NV).sum()
    dense.backward()
    expected = leaf_NV.grad.numpy().ravel()
    assert p_value_of_the_largest(np.array(gradients), expected) > LEAST_P
    assert p_value_of_the_largest(np.array(losses), np.array([float(dense.detach())])) > LEAST_P
    biased = gradient(logits_NV, renormalised(logp_NV))[1] - expected
    assert p_value_of_the_largest(np.array(gradients) + biased, expected) < 1e-12, "the test would notice another mean"


def test_a_class_of_probability_0_is_never_sampled_and_rare_classes_are() -> None:
    logp_NV = torch.tensor([[0.0, 0.5, 0.0, 0.499, 0.001, 0.0]], dtype=torch.float64).log()
    form = Sampled(draws=20_000)
    found = form.classes(form.stored(logp_NV, [generator(1, "zeros")]))
    assert found.class_NK.tolist() == [[1, 3, 4]]
    assert float(found.weight_NK.sum()) == pytest.approx(1.0)
    assert found.weight_NK[0].tolist() == pytest.approx([0.5, 0.499, 0.001], abs=0.02)


def test_samples_depend_on_sequence_and_seed_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = compact(tmp_path / "one", Sampled(draws=5))
    monkeypatch.setattr(filling, "SHARD_BYTES", 500)
    monkeypatch.setattr(forms, "CHUNK_BYTES", 8 * VOCABULARY * 3)
    divided, other = compact(tmp_path / "divided", Sampled(draws=5)), compact(tmp_path / "other", Sampled(draws=5, seed=11))
    assert divided.layout.shards > 1 == one.layout.shards
    batch = collate(items_of(sequences(), "distillation"), pad_id=0)
    rows = slice(0, batch.num_sampled_rows)
    first, second, third = (teacher(store).rows(batch)(rows) for store in (one, divided, other))
    assert torch.equal(first.class_NK, second.class_NK)
    assert first.class_NK.shape != third.class_NK.shape or not torch.equal(first.class_NK, third.class_NK)


# --- stores -------------------------------------------------------------------------------------------------------------


def teacher(store: TeacherStore) -> CachedTeacher:
    return CachedTeacher(store, vocabulary=VOCABULARY, device="cpu")


class Listing:
    """A live teacher whose targets are its k most probable classes and the rest."""

    def __init__(self, k: int) -> None:
        self._teacher, self._k = LocalTeacher(model("llama"), vocabulary=VOCABULARY, device="cpu"), k

    def rows(self, batch) -> TeacherTarget:  # type: ignore[no-untyped-def]
        logits = self._teacher.rows(batch)

        def target(rows: slice) -> TopClasses:
            logp_NV = logits(rows).log_softmax(dim=-1)
            top = logp_NV.topk(self._k)
            return TopClasses(top.indices, top.values, logp_NV.scatter(1, top.indices, -math.inf).logsumexp(dim=-1))

        return target


@pytest.mark.parametrize("cls", get_args(Divergence))
def test_a_stored_top_k_has_the_loss_and_gradient_of_the_live_one(tmp_path: Path, cls: type[Divergence]) -> None:
    objective = Objective(sft_weight=0.0, divergence=cls())
    mine = loss_and_gradient(teacher(compact(tmp_path / "store", TopK(k=7))), objective, "llama")
    theirs = loss_and_gradient(Listing(7), objective, "llama")
    assert mine[0] == pytest.approx(theirs[0], rel=3e-3)
    largest = max(float(gradient.abs().max()) for gradient in theirs[1])
    for own, other in zip(mine[1], theirs[1], strict=True):
        torch.testing.assert_close(own, other, rtol=1e-2, atol=1e-2 * largest)  # log-probabilities in float16


def test_the_probabilities_of_a_row_have_the_sum_1(tmp_path: Path) -> None:
    batch = collate(items_of(sequences(), "distillation"), pad_id=0)
    for k in (1, 7, VOCABULARY, VOCABULARY + 9):
        found = teacher(compact(tmp_path / str(k), TopK(k=k))).rows(batch)(slice(2, 9))
        assert found.class_NK.shape == (7, k)
        total_N = found.logp_NK.exp().sum(dim=1) + found.log_rest_N.exp()
        torch.testing.assert_close(total_N, torch.ones(7))


@pytest.mark.parametrize("form", [TopK(k=7), Sampled(draws=9)], ids=repr)
def test_the_size_is_that_of_the_formula(tmp_path: Path, form: CompactForm) -> None:
    store = compact(tmp_path / "store", form)
    targets = sum(each.num_targets for each in sequences())
    written = sum(path.stat().st_size for path in (tmp_path / "store").glob("states-*"))
    assert not (tmp_path / "store" / "head.safetensors").exists()
    if isinstance(form, TopK):
        assert store.layout.state_bytes == targets * (6 * 7 + 4) + len(sequences()) * 24
        assert 0 < written - store.layout.state_bytes < 500  # the header
    else:
        assert written < store.layout.state_bytes + 500


@pytest.mark.parametrize("form", [TopK(k=7), Sampled(draws=9)], ids=repr)
def test_a_form_is_made_for_the_classes_that_both_models_have(tmp_path: Path, form: CompactForm) -> None:
    store = compact(tmp_path / "store", form, vocabulary=33)
    batch = collate(items_of(sequences()[:2], "distillation"), pad_id=0)
    found = CachedTeacher(store, vocabulary=33, device="cpu").rows(batch)(slice(0, batch.num_sampled_rows))
    assert int(found.class_NK.max()) < 33
    with pytest.raises(ConfigError, match="probabilities over 33 classes, but student and teacher share 40; run `redistill"):
        CachedTeacher(store, vocabulary=40, device="cpu")


@pytest.mark.parametrize("form", [TopK(k=7), Sampled(draws=9)], ids=repr)
def test_rows_that_are_not_finite_are_counted(tmp_path: Path, form: CompactForm) -> None:
    broken = model("llama")
    with torch.no_grad():
        broken.model.norm.weight.fill_(float("nan"))
    (tmp_path / "store").mkdir()
    filler = reader(broken, torch.float32, form=form)
    StoreWriter(tmp_path / "store", {}).states(Plan(sequences(), filler.row_bytes), filler, lambda done, total, tokens: None)
    cached = teacher(TeacherStore.open(tmp_path / "store", report=pytest.fail))
    batch = collate(items_of(sequences()[:2], "distillation"), pad_id=0)
    cached.rows(batch)(slice(0, batch.num_sampled_rows))
    assert cached.faults() == batch.num_sampled_rows and cached.faults() == 0


@pytest.mark.parametrize("form", [Full(), TopK(k=3), Sampled(draws=2, power=0.5, seed=4)], ids=repr)
def test_a_form_is_created_again_from_its_description(form: Form) -> None:
    assert form_from(described(form)) == form


@pytest.mark.parametrize(
    "create", [lambda: TopK(k=0), lambda: Sampled(draws=0), lambda: Sampled(power=0.0), lambda: Sampled(power=3.0)]
)
def test_settings_out_of_range_are_rejected(create) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match="must"):
        create()
