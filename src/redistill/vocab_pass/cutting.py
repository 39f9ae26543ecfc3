"""Division of rows into blocks and tiles, by a memory limit.

A block is the rows of one matrix product with the LM head.  It is divided into tiles, on which the loss terms are computed.
Each product reads the whole head, so blocks are large.  On a CPU, tiles are small, since small tiles fit the cache.  On an
accelerator, a tile is a whole block: with small tiles, launching the kernels of a tile would take longer than running them.
"""

from typing import NamedTuple

import torch

from redistill.processes.memory import device_bytes

LEAST_CHUNK_BYTES = 192 * 2**20
MOST_CHUNK_BYTES = 2**30
DEVICE_PART = 40
"""The memory limit on an accelerator is the accelerator's memory divided by this number.

By calculation, an accelerator of 80 GB needs tiles of about 250 rows of 150,000 classes, so that kernels run longer than their
launch takes.  This number was not measured.
"""

# Numbers of [rows, vocabulary] tensors that exist at the same time.  On a CPU, blocks get three quarters of the limit, and
# tiles a quarter of the smallest limit.
BLOCK_TENSORS = 2  # logits (later their gradient), and the teacher's logits
TILE_TENSORS = 10  # log q, p, their products, and the gradients of these tensors
COMPILED_TENSORS = 7  # the same tensors, if the terms are compiled
ALIGNED_ROWS = 8  # rows of a compiled tile are a multiple of this, so that each tile starts at a multiple of 16 bytes
HALVINGS = 2  # a compiled tile of an accelerator has the maximum number of rows, half or a quarter of it


def chunk_budget(head_bytes: int, device: torch.device | str = "cpu") -> int:
    """Return the default memory limit of all [rows, vocabulary] tensors together.

    On a CPU, the limit is the size of the head in bytes, but at least 192 MiB and at most 1 GiB.  Rows are processed in blocks,
    and each block reads the whole head and its gradient.  A larger head gets larger blocks, so that it is read less often.  On
    an accelerator, the limit is a fortieth of its memory, but at least 192 MiB.

    Args:
        head_bytes: Bytes of the head's weight in float32.
        device: Device of the hidden states.

    Returns:
        The limit, in bytes.

    Example:
        >>> chunk_budget(4 * 50257 * 768) // 2**20  # MiB, for a head of 50,257 classes and width 768
        192
        >>> chunk_budget(4 * 262144 * 2048) // 2**20
        1024
    """
    memory = device_bytes(device)
    if memory is not None:
        return max(LEAST_CHUNK_BYTES, memory // DEVICE_PART)
    return min(max(LEAST_CHUNK_BYTES, head_bytes), MOST_CHUNK_BYTES)


class CutRows(NamedTuple):
    """Maximum numbers of rows of a block and of a tile.

    A block is the rows of one matrix product; it is divided into tiles, on which the loss terms are computed.
    """

    block: int
    tile: int


def cut_rows(chunk_bytes: int, row_bytes: int, compiled: bool, device: torch.device | str = "cpu") -> CutRows:
    """Return how many rows a block and a tile may have, at least one each.

    On an accelerator, a tile has as many rows as a block.

    Args:
        chunk_bytes: Approximate memory limit of all [rows, vocabulary] tensors together.
        row_bytes: Bytes of one row of one such tensor.
        compiled: Whether the terms are compiled; if so, a tile has a multiple of 8 rows.
        device: Device of the hidden states.

    Example:
        >>> cut_rows(2**31, 4 * 151936, False), cut_rows(2**31, 4 * 151936, False, "cuda")
        (CutRows(block=1324, tile=8), CutRows(block=294, tile=294))
    """
    tensors = COMPILED_TENSORS if compiled else TILE_TENSORS
    if _is_cpu(device):
        block = 3 * (chunk_bytes // (4 * row_bytes)) // BLOCK_TENSORS
        tile = min(chunk_bytes, LEAST_CHUNK_BYTES) // (4 * row_bytes) // tensors
    else:
        block = tile = chunk_bytes // row_bytes // (BLOCK_TENSORS + tensors)
    if compiled:
        tile = max(1, tile // ALIGNED_ROWS) * ALIGNED_ROWS
        block = block if _is_cpu(device) else tile
    return CutRows(max(1, block), max(1, tile))


def padded_rows(num_rows: int, tile: int, device: torch.device | str) -> int:
    """Return the number of rows to which a compiled tile is padded.

    Terms are compiled again for each number of rows, so only a few numbers are used.  On a CPU, all tiles are padded to the
    maximum number of rows.  On an accelerator, tiles are large, and are padded to the maximum, a half or a quarter of it.

    Args:
        num_rows: Number of rows of the tile.
        tile: Maximum number of rows of a tile, a multiple of 8.
        device: Device of the hidden states.

    Example:
        >>> padded_rows(50, 256, "cpu"), padded_rows(50, 256, "cuda"), padded_rows(100, 256, "cuda")
        (256, 64, 128)
    """
    if _is_cpu(device):
        return tile
    sizes = (-(-tile // (ALIGNED_ROWS << halvings)) * ALIGNED_ROWS for halvings in range(HALVINGS, -1, -1))
    return next(size for size in sizes if size >= num_rows)


def cuts(rows: slice, num_rows: int) -> list[slice]:
    """Return the fewest slices of at most max(1, num_rows) rows that cover `rows`.

    All slices have about the same length.
    """
    total = rows.stop - rows.start
    size = -(-total // max(1, -(-total // max(1, num_rows))))
    return [slice(start, min(start + size, rows.stop)) for start in range(rows.start, rows.stop, max(1, size))]


def _is_cpu(device: torch.device | str) -> bool:
    return torch.device(device).type == "cpu"
