"""Laws of divergences.

A law is a property that every divergence must have.  p is the distribution of the teacher, and q is that of the student.  A
violated law raises an AssertionError, which states the law, the input and the values.

If a divergence cannot satisfy a law, its class has an attribute `disobeys = {"law": "reason"}` with the name of the law.
`check_divergence` skips this law.
"""

import numpy as np
import torch

from redistill.contracts import Divergence
from redistill.testing.laws import Findings, check, suite

NUM_SEEDS = 25


def check_divergence(divergence: Divergence) -> None:
    """Check the properties (laws) that every divergence must have.

    Laws that the divergence excludes in its class attribute `disobeys` are not checked.

    Args:
        divergence: A frozen dataclass that is called with (logq_NV, logp_NV) and returns divergence_N.

    Raises:
        AssertionError: a law is violated; the message names the law, the input and the values.

    Example:
        >>> from redistill.losses.divergences import TotalVariation
        >>> check_divergence(TotalVariation())
    """
    check(divergence, DIVERGENCE_LAWS)


# --- the value ----------------------------------------------------------------------------------------------------------


def one_value_per_row(divergence: Divergence) -> Findings:
    """Check that inputs [N, V] give an output of shape [N], also for N = 0.

    N is 0 in a process that has no rows.
    """
    for num_rows in (5, 1, 0):
        got = tuple(divergence(log_rows(1)[:num_rows], log_rows(2)[:num_rows]).shape)
        yield got == (num_rows,), f"{num_rows} rows of 11 classes gave shape {got}"


def zero_when_equal(divergence: Divergence) -> Findings:
    """Check that the divergence is 0 if student and teacher are equal.

    A divergence with a field `teacher_temperature` is 0 if the student is equal to the teacher at this temperature.
    """
    for seed in range(NUM_SEEDS):
        logp_NV = log_rows(seed, scale=0.5 * seed)
        logq_NV = torch.log_softmax(_equal_logits(divergence, logp_NV), dim=-1)
        largest = float(divergence(logq_NV, logp_NV).abs().max())
        yield largest < 1e-12, f"q = p = log_rows({seed}) gave {largest:g}"


def positive_when_a_class_differs(divergence: Divergence) -> Findings:
    """Check that the divergence is positive if a single logit differs.

    The student's other logits are equal to those of the teacher at `teacher_temperature`.
    """
    for seed in range(NUM_SEEDS):
        logp_NV, change = log_rows(seed), 0.01 * 1.3**seed
        logits_NV = _equal_logits(divergence, logp_NV)
        logits_NV[:, seed % 11] += change
        smallest = float(divergence(torch.log_softmax(logits_NV, dim=-1), logp_NV).min())
        yield smallest > 0, f"p = log_rows({seed}), logit {seed % 11} of q higher by {change:g}, gave {smallest:g}"


def finite_on_extreme_logits(divergence: Divergence) -> Findings:
    """Check that values and gradients are finite for extreme logits.

    Classes with probability 0 are among the inputs.
    """
    inf = float("inf")
    student = [[0.0, -1e4, 1e4], [1e4, 0.0, 0.0], [0.0, 1.0, 2.0], [0.0, 1.0, -inf], [-inf, 0.0, 90.0], [-inf, 0.0, 0.0]]
    teacher = [[1e4, -1e4, 0.0], [0.0, 1e4, -1e4], [5.0, -inf, -inf], [0.0, 1.0, -inf], [0.0, 0.0, -90.0], [0.0, -inf, -inf]]
    for dtype in (torch.float32, torch.float64):
        logits_NV = torch.tensor(student, dtype=dtype).requires_grad_()
        value_N = divergence(logits_NV.log_softmax(-1), torch.tensor(teacher, dtype=dtype).log_softmax(-1))
        value_N.sum().backward()
        assert logits_NV.grad is not None
        finite_N = value_N.isfinite() & logits_NV.grad.isfinite().all(-1)
        for row in finite_N.logical_not().nonzero().flatten().tolist():
            text = f"student logits {student[row]}, teacher logits {teacher[row]} ({dtype}) gave {value_N[row]:g}, "
            yield False, f"{text}gradient {logits_NV.grad[row].tolist()}"


def excluded_classes_have_no_effect(divergence: Divergence) -> Findings:
    """Check that classes with probability 0 in both models have no effect.

    A padded vocabulary has such classes.
    """
    logq_NV, logp_NV = log_rows(10), log_rows(11)
    plain_N = divergence(logq_NV, logp_NV)
    padded_N = divergence(*(torch.nn.functional.pad(rows, (0, 3), value=-float("inf")) for rows in (logq_NV, logp_NV)))
    close = torch.allclose(padded_N, plain_N, atol=0, rtol=1e-14)
    yield close, f"three classes of -inf changed {plain_N.tolist()} to {padded_N.tolist()}"


def nan_is_propagated(divergence: Divergence) -> Findings:
    """Check that NaN in a row gives NaN for this row and no other."""
    logq_NV = log_rows(14)
    logq_NV[0, 0] = float("nan")
    got = divergence(logq_NV, log_rows(15)).isnan().tolist()
    yield got == [True] + [False] * 4, f"nan in row 0 of 5 gave nan in rows {got}"


def rows_are_independent(divergence: Divergence) -> Findings:
    """Check that the value of a row does not depend on the other rows.

    Training computes the loss in chunks of rows.  Their size must not change the values.
    """
    logq_NV, logp_NV = log_rows(12), log_rows(13)
    alone, among = divergence(logq_NV[1:3], logp_NV[1:3]), divergence(logq_NV, logp_NV)[1:3]
    close = torch.allclose(alone, among, atol=1e-14)
    yield close, f"rows 1 and 2 alone gave {alone.tolist()}, as part of five rows {among.tolist()}"


def inputs_are_not_modified(divergence: Divergence) -> Findings:
    """Check that inputs are not modified, since other loss terms use the same rows."""
    rows = log_rows(16), log_rows(17)
    before = [row.clone() for row in rows]
    divergence(*rows)
    yield all(map(torch.equal, rows, before)), "an input was modified in place"


# --- the gradient -------------------------------------------------------------------------------------------------------


def gradient_matches_finite_differences(divergence: Divergence) -> Findings:
    """Check the gradient with respect to the student's logits by finite differences.

    The gradient and the finite differences are computed in float64.
    """
    logits_NV, logp_NV, step = log_rows(2), log_rows(3), 1e-6

    def value_N(moved_NV: torch.Tensor) -> torch.Tensor:
        return divergence(moved_NV.log_softmax(-1), logp_NV)

    got_VN, moves_VV = _gradient(divergence, logits_NV, logp_NV).T, step * torch.eye(logits_NV.shape[1], dtype=torch.float64)
    for class_, (move_V, got_N) in enumerate(zip(moves_VV, got_VN, strict=True)):
        wanted_N = (value_N(logits_NV + move_V) - value_N(logits_NV - move_V)) / (2 * step)
        text = f"q = log_rows(2), p = log_rows(3), class {class_}: autograd {got_N.tolist()}, differences {wanted_N.tolist()}"
        yield torch.allclose(got_N, wanted_N, atol=1e-7, rtol=1e-5), text


def zero_gradient_when_equal(divergence: Divergence) -> Findings:
    """Check that the gradient is 0 if student and teacher are equal.

    The gradient is taken with respect to the student's logits.  A divergence with a field `teacher_temperature` has the
    gradient 0 if the student is equal to the teacher at this temperature.
    """
    logits_NV = log_rows(18)
    logp_NV = logits_NV.log_softmax(-1)
    if _teacher_temperature(divergence) != 1:
        logits_NV = _equal_logits(divergence, logp_NV)  # so that q and the tempered p are bitwise equal
    largest = float(_gradient(divergence, logits_NV, logp_NV).abs().max())
    yield largest < 1e-12, f"q = p = log_rows(18) has a gradient of {largest:g}"


def teacher_gets_no_gradient(divergence: Divergence) -> Findings:
    """Check that the teacher receives no gradient, and the student receives one."""
    logq_NV, logp_NV = log_rows(4).requires_grad_(), log_rows(5).requires_grad_()
    divergence(logq_NV, logp_NV).sum().backward()
    yield logp_NV.grad is None, "logp_NV received a gradient; detach it"
    yield logq_NV.grad is not None and bool(logq_NV.grad.abs().sum() > 0), "logq_NV received no gradient"


def accurate_close_to_the_teacher(divergence: Divergence) -> Findings:
    """Check that the float32 gradient is accurate for a student close to the teacher.

    This is the case late in training.  The error relative to the float64 gradient must be below 5e-3 (L2 norms).
    """
    logp_NV = log_rows(20, vocabulary=5000, scale=3.0).float()
    logits_NV = _equal_logits(divergence, logp_NV) + 0.08 * log_rows(21, vocabulary=5000, scale=1.0).float()
    single_NV, double_NV = (_gradient(divergence, logits_NV.to(d), logp_NV.to(d)) for d in (torch.float32, torch.float64))
    error = float((single_NV - double_NV).norm() / double_NV.norm())
    yield error < 5e-3, f"5000 classes, KL about 0.003: the float32 gradient has a relative error of {error:g}"


# --- precision ----------------------------------------------------------------------------------------------------------


def half_precision_is_computed_in_float32(divergence: Divergence) -> Findings:
    """Check that bfloat16 and float16 inputs are computed in float32.

    The result is float32 as well.
    """
    for dtype in (torch.bfloat16, torch.float16):
        logq_NV, logp_NV = log_rows(6).to(dtype), log_rows(7).to(dtype)
        got_N, wanted_N = divergence(logq_NV, logp_NV), divergence(logq_NV.double(), logp_NV.double())
        right = got_N.dtype == torch.float32 and torch.allclose(got_N.double(), wanted_N, atol=1e-5, rtol=1e-5)
        yield right, f"{dtype} rows gave {got_N.tolist()} ({got_N.dtype}), the same rows in float64 {wanted_N.tolist()}"


def float64_stays_float64(divergence: Divergence) -> Findings:
    """Check that float64 inputs give a float64 result.

    Tests use float64 results as references.
    """
    got = divergence(log_rows(8), log_rows(9)).dtype
    yield got == torch.float64, f"float64 rows gave {got}"


DIVERGENCE_LAWS = suite(
    one_value_per_row,
    zero_when_equal,
    positive_when_a_class_differs,
    finite_on_extreme_logits,
    excluded_classes_have_no_effect,
    nan_is_propagated,
    rows_are_independent,
    inputs_are_not_modified,
    gradient_matches_finite_differences,
    zero_gradient_when_equal,
    teacher_gets_no_gradient,
    accurate_close_to_the_teacher,
    half_precision_is_computed_in_float32,
    float64_stays_float64,
)


def log_rows(seed: int, num_rows: int = 5, vocabulary: int = 11, scale: float = 2.0) -> torch.Tensor:
    """Return random log-probabilities [num_rows, vocabulary], float64.

    `seed` initialises the random numbers.  `scale` is the standard deviation of the logits; a larger value gives a lower
    entropy.
    """
    logits_NV = scale * np.random.default_rng(seed).standard_normal((num_rows, vocabulary))
    return torch.log_softmax(torch.from_numpy(logits_NV), dim=-1)


def _teacher_temperature(divergence: Divergence) -> float:
    """Return the field `teacher_temperature` of a divergence; 1 if it has no such field."""
    return float(getattr(divergence, "teacher_temperature", 1.0))


def _equal_logits(divergence: Divergence, logp_NV: torch.Tensor) -> torch.Tensor:
    """Return logits of a student that is equal to the teacher at `teacher_temperature`; a new tensor."""
    return logp_NV / _teacher_temperature(divergence)


def _gradient(divergence: Divergence, logits_NV: torch.Tensor, logp_NV: torch.Tensor) -> torch.Tensor:
    """Return the gradient [N, V] with respect to the student's logits.

    The differentiated value is the sum of the divergence over all rows.
    """
    leaf_NV = logits_NV.detach().requires_grad_()
    (gradient_NV,) = torch.autograd.grad(divergence(leaf_NV.log_softmax(-1), logp_NV).sum(), leaf_NV)
    return gradient_NV
