"""Sample rows: short questions and answers, as conversations.

The rows are a small data set for a first run.  They were written for this package and have the licence of the package.
"""

from pathlib import Path

from redistill.storage.packaged import copy_packaged, packaged

NAMES = ("train.jsonl", "test.jsonl")


def copy_sample(folder: Path) -> list[Path]:
    """Copy the sample rows to a folder, and return the paths of the two files.

    Args:
        folder: Output folder, which is created. Files with the same contents are not changed.

    Raises:
        OutputError: the folder has other files with these names, or cannot be written.
    """
    targets = [folder / name for name in NAMES]
    for target in targets:
        copy_packaged(packaged("data/sample_rows") / target.name, target)
    return targets
