"""Out-of-memory errors: work is retried with half the size; other errors are raised."""

import json
from itertools import pairwise

import pytest
import torch

from redistill.errors import TrainingError
from redistill.processes.memory import Halving, is_out_of_memory, unless_out_of_memory


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"
        ),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_out_of_memory_errors_are_recognized(error):
    def work():
        raise error

    assert is_out_of_memory(error) and unless_out_of_memory(work) is None


def test_other_errors_are_raised():
    def work():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        unless_out_of_memory(work)


@pytest.mark.parametrize(("size", "limit", "tried"), [(64, 64, [64]), (64, 10, [64, 32, 16, 8]), (7, 1, [7, 3, 1])])
def test_the_size_is_halved_until_it_fits_and_kept(size, limit, tried):
    sizes, seen = Halving("generation_batch_size", size), []

    def work(at_once):
        seen.append(at_once)
        if at_once > limit:
            raise MemoryError
        return at_once

    assert sizes.repeat(work) == tried[-1] and seen == tried
    assert sizes.repeat(work) == tried[-1] and seen[len(tried) :] == tried[-1:]
    changes = sizes.take_changes()
    assert len(changes) == len(tried) - 1 and sizes.take_changes() == []
    assert all(f"= {a}; retried with {b}" in text for text, (a, b) in zip(changes, pairwise(tried), strict=True))
    again = Halving("generation_batch_size", size)
    again.load_state_dict(json.loads(json.dumps(sizes.state_dict())))  # as in a checkpoint
    assert again.size == tried[-1]


def test_a_size_of_one_that_does_not_fit_is_an_error_with_a_remedy():
    def work(at_once):
        raise MemoryError

    with pytest.raises(TrainingError, match=r"micro_batch_size = 1: out of memory.*gradient_checkpointing"):
        Halving("training.micro_batch_size", 4).repeat(work)
