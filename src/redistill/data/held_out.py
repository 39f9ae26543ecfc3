"""Selection of validation rows: the first rows that validation can use.

A row is not selected if the template rejects it, if its prompt is too long, or if it has no answer.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from redistill.data.rows import Rows
from redistill.data.tokenize import RejectedRecord, TokenizeConfig, tokenize_some
from redistill.interfaces import Tokenizer


class HeldOut(NamedTuple):
    """The rows that are selected for validation.

    Args:
        indices: Indices of the selected rows, in increasing order (int64).
        rejected, too_long: The unusable rows before the last selected row, as in `TokenizeReport`. If too few rows are usable,
            all unusable rows are listed.
    """

    indices: np.ndarray
    rejected: tuple[RejectedRecord, ...]
    too_long: tuple[RejectedRecord, ...]


def first_usable(
    rows: Rows,
    count: int,
    tokenizer: Tokenizer,
    config: TokenizeConfig,
    *,
    cache: Callable[[str], None] | None = None,
) -> HeldOut:
    """Find the first `count` rows that can be used for validation.

    Rows are tokenized in blocks until enough usable rows are found.

    Args:
        rows: The rows.
        count: Number of rows to select, >= 1. If `rows` has fewer usable rows, all of them are selected.
        tokenizer: The tokenizer of the student.
        config: Template and length limits.
        cache: Receives warnings about the cache; see `tokenize_training`.
    """
    indices = list[int]()
    rejected, too_long = list[RejectedRecord](), list[RejectedRecord]()
    done = 0
    while len(indices) < count and done < len(rows):
        size = max(count - len(indices), done)  # blocks grow, so that many refused rows need few calls
        examples, report = tokenize_some(rows[done : done + size], tokenizer, config, seed=0, cache=cache)
        indices += (examples.index_N + done).tolist()
        rejected += [replace(found, index=found.index + done) for found in report.rejected]
        too_long += [replace(found, index=found.index + done) for found in report.too_long]
        done += size
    indices = indices[:count]
    last = indices[-1] if len(indices) == count else len(rows)
    before = (tuple(found for found in group if found.index < last) for group in (rejected, too_long))
    return HeldOut(np.array(indices, dtype=np.int64), *before)
