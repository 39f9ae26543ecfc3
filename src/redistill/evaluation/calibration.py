"""Calibration: whether the confidence of a model equals its accuracy.

The confidence is the probability of the most probable token.
"""

from collections.abc import Mapping

import torch

NUM_BINS = 15
_GAPS = tuple(f"calibration_gap_{index}" for index in range(NUM_BINS))


def calibration_gaps(confidence_N: torch.Tensor, is_right_N: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the contribution of each row to the calibration gap of each bin.

    A row is the prediction of one token.  Rows are divided into 15 bins (`NUM_BINS`) of equal width by their confidence.

    Args:
        confidence_N: Probability of the most probable token, in [0, 1].  Bin b has the values in [b / 15, (b + 1) / 15), and
            the last bin also has 1.
        is_right_N: Whether the most probable token is the gold token.

    Returns:
        For each bin, by the name of the bin, a tensor with one value for each of the N rows.  For a row in the bin, the
        value is 1 - confidence if the most probable token is right, and -confidence if it is wrong.  For a row in another
        bin, the value is 0.  `calibration_error` needs the sums of these tensors.

    Example:
        >>> gaps = calibration_gaps(torch.tensor([0.95, 0.5]), torch.tensor([True, False]))
        >>> gaps["calibration_gap_14"], gaps["calibration_gap_7"]
        (tensor([0.0500, 0.0000]), tensor([ 0.0000, -0.5000]))
    """
    bin_N = (confidence_N * NUM_BINS).long().clamp(0, NUM_BINS - 1)
    gap_N = is_right_N.to(confidence_N.dtype) - confidence_N
    return {name: torch.where(bin_N == index, gap_N, 0.0) for index, name in enumerate(_GAPS)}


def calibration_error(sums: Mapping[str, float], count: float) -> float:
    r"""Return the expected calibration error.

    .. math:: \mathrm{ECE} = \sum_b \frac{n_b}{N} \left| \mathrm{acc}_b - \mathrm{conf}_b \right|

    n_b is the number of rows in bin b, and N is the number of all rows.  For the rows in bin b, acc_b is the fraction whose
    most probable token is right, and conf_b is the mean confidence.  ECE is in [0, 1]; it is 0 if accuracy and mean
    confidence are equal in every bin. Source: Guo et al. 2017 (arXiv 1706.04599), with 15 bins.

    Args:
        sums: The sums of `calibration_gaps` over all rows, by name.
        count: Number of rows, N >= 1.

    Example:
        >>> gaps = calibration_gaps(torch.tensor([0.95, 0.5]), torch.tensor([True, False]))
        >>> round(calibration_error({name: float(value.sum()) for name, value in gaps.items()}, 2), 3)
        0.275
    """
    return sum(abs(sums[name]) for name in _GAPS) / count
