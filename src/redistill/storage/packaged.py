"""Data files that are installed with the package, such as recipes."""

from pathlib import Path

from redistill.errors import OutputError
from redistill.storage import files
from redistill.storage.paths import check_path

PACKAGE = Path(__file__).parents[1]


def packaged(name: str) -> Path:
    """Return the path of a file or folder of the package, such as "recipes"."""
    return PACKAGE / name


def copy_packaged(source: Path, target: Path) -> None:
    """Copy a file of the package to a new file, whose folders are created.

    A file `target` with the same contents is not changed.

    Raises:
        OutputError: there is another file or folder `target`, or it cannot be written.
    """
    check_path(target)
    data = source.read_bytes()
    if target.is_file() and target.read_bytes() == data:
        return
    if target.exists() or target.is_symlink():
        raise OutputError(f"{target}: exists and has other contents; choose another --out")
    files.make_folder(target.absolute().parent)
    files.write_bytes(target, data)
