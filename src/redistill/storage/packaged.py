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
    """Copy a file of the package to the path `target`, and create missing folders.

    If the file `target` exists with the same contents, it is not changed.

    Raises:
        OutputError: `target` is a folder or a file with other contents, or it cannot be written.
    """
    check_path(target)
    data = source.read_bytes()
    if target.is_file() and target.read_bytes() == data:
        return
    if target.exists() or target.is_symlink():
        raise OutputError(f"{target}: exists and has other contents; choose another --out")
    files.make_folder(target.absolute().parent)
    files.write_bytes(target, data)
