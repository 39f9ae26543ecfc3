"""How often a fault is tried: a quick subset always, all of it by `make faults`."""

import os

WHOLE = os.environ.get("REDISTILL_FAULTS") == "whole"

FUZZED = {
    "a changed recipe": (150, 5_000),
    "any tree as a recipe": (100, 3_000),
    "overrides": (200, 6_000),
    "YAML": (1_000, 20_000),
    "YAML with pieces": (20, 1_000),
    "a changed sweep": (60, 1_500),
    "a row": (400, 8_000),
    "a file of rows": (150, 5_000),
    "a CSV file": (100, 3_000),
    "a compressed file": (60, 2_000),
    "a Parquet file": (60, 2_000),
    "an Arrow file": (60, 2_000),
    "columns": (100, 2_000),
    "a name of data": (60, 1_500),
    "a corpus": (80, 1_500),
    "JSON": (500, 8_000),
    "lines of JSON": (150, 4_000),
    "run.json": (15, 400),
    "run.json of a compared run": (15, 300),
    "scores.json": (15, 400),
    "sweep.json": (20, 400),
    "logs of a run": (20, 500),
    "answers of a run": (12, 300),
    "settings of an evaluation": (300, 5_000),
    "scores of an earlier evaluation": (300, 6_000),
    "answers": (40, 1_000),
    "answers of a teacher": (400, 6_000),
    "run.json of a sweep": (40, 1_000),
    "rejected rows": (60, 1_500),
    "a checkpoint": (30, 800),
    "state of training": (40, 1_200),
    "safetensors": (300, 5_000),
    "a cached array": (20, 400),
    "numbers of the command line": (150, 3_000),
    "--jobs": (60, 1_000),
    "arguments": (80, 1_500),
    "fields of a config": (30, 1_500),
    "fields of a loaded model": (8, 300),
    "files of a tokenizer": (20, 1_000),
    "fields of an adapter": (40, 1_200),
    "a merged adapter": (6, 200),
    "headers of weights": (150, 3_000),
    "an index of weights": (200, 4_000),
    "weights of a model": (8, 200),
    "a GGUF file": (6, 150),
}
"""Reader -> inputs that are tried always, and by `make faults`."""


def trials(quick: int, whole: int) -> int:
    """The number of trials of this call of pytest."""
    return whole if WHOLE else quick
