"""How often a fault is tried: a quick subset always, all of it by `make faults`."""

import os

WHOLE = os.environ.get("REDISTILL_FAULTS") == "whole"

FUZZED = {
    "a changed recipe": (400, 10_000),
    "any tree as a recipe": (300, 4_000),
    "overrides": (300, 8_000),
    "YAML": (600, 12_000),
    "YAML with pieces": (60, 2_000),
    "a changed sweep": (100, 2_000),
    "a row": (600, 12_000),
    "a file of rows": (300, 8_000),
    "a corpus": (100, 2_000),
    "JSON": (500, 10_000),
    "lines of JSON": (300, 6_000),
    "run.json": (30, 1_000),
    "run.json of a compared run": (20, 500),
    "scores.json": (30, 1_000),
    "sweep.json": (20, 500),
    "logs of a run": (40, 1_000),
    "answers of a run": (30, 800),
    "settings of an evaluation": (100, 3_000),
    "scores of an earlier evaluation": (100, 3_000),
    "answers": (80, 2_000),
    "answers of a teacher": (100, 3_000),
    "run.json of a sweep": (40, 1_000),
    "rejected rows": (60, 2_000),
    "a checkpoint": (60, 2_000),
    "state of training": (100, 3_000),
    "safetensors": (500, 10_000),
    "a cached array": (60, 1_500),
    "numbers of the command line": (500, 9_000),
    "--jobs": (100, 1_000),
    "arguments": (150, 3_000),
    "fields of a model": (30, 1_200),
    "files of a tokenizer": (40, 1_200),
    "files of an adapter": (20, 600),
    "weights of a model": (40, 1_200),
}
"""Reader -> inputs that are tried always, and by `make faults`."""


def trials(quick: int, whole: int) -> int:
    """The number of trials of this call of pytest."""
    return whole if WHOLE else quick
