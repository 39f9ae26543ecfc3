"""The git commit of redistill's own checkout.

The git configuration of a checkout can name programs, for example in `core.fsmonitor`, which git runs.  This module must
not run such programs.  Therefore it runs git in a temporary repository that uses the object database and the index of the
checkout. Git then reads neither the configuration of the checkout nor that of the user.
"""

import os
import re
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import redistill

_GIT_SECONDS = 20


def own_commit() -> str | None:
    """Read the commit of the checkout from which this package is imported.

    Returns:
        The hash of the commit; "-dirty" is appended if tracked files have changes.  None if the package is not imported
        from a checkout of redistill (for example, if it is an installed wheel), or if git is missing.
    """
    package = Path(redistill.__file__).resolve().parent
    checkout = package.parents[1]
    return commit_of(checkout) if package == checkout / "src" / "redistill" else None


def commit_of(checkout: Path) -> str | None:
    """Read the commit of a checkout.

    Args:
        checkout: The top folder, which contains `.git`.

    Returns:
        The hash of the commit; "-dirty" is appended if tracked files have changes.  None if the commit cannot be read.
    """
    with suppress(OSError, subprocess.SubprocessError, ValueError):
        folder, shared = _git_folders(checkout / ".git")
        commit = _head(folder, shared)
        return f"{commit}-dirty" if _is_changed(checkout, folder / "index", shared / "objects", commit) else commit
    return None


def _git_folders(entry: Path) -> tuple[Path, Path]:
    """Return the git folder of a checkout, and the git folder of its repository.

    `entry` is the path `.git` in the checkout: a folder, or a file in a worktree.  All worktrees of a repository share the
    second folder.  Without worktrees, the two results are equal.
    """
    folder = entry
    if entry.is_file():  # of a worktree; the file contains "gitdir: FOLDER"
        folder = entry.parent / entry.read_text(encoding="utf-8").removeprefix("gitdir:").strip()
    shared = folder / "commondir"
    return folder, folder / shared.read_text(encoding="utf-8").strip() if shared.is_file() else folder


def _head(folder: Path, shared: Path) -> str:
    """Read the hash of the checked-out commit.

    Raises:
        OSError, ValueError: there is no commit, or its hash is stored in a format that this function does not read.
    """
    held = (folder / "HEAD").read_text(encoding="utf-8").strip()
    if held.startswith("ref: "):
        name = held.removeprefix("ref: ")
        loose, packed = shared / name, shared / "packed-refs"
        lines = packed.read_text(encoding="utf-8").splitlines() if packed.is_file() and not loose.is_file() else []
        held = next((line.split()[0] for line in lines if line.endswith(f" {name}")), "") or loose.read_text().strip()
    if not re.fullmatch(r"[0-9a-f]{40}", held):
        raise ValueError(f"HEAD: contains {held!r}; must be the hash of a commit")
    return held


def _is_changed(checkout: Path, index: Path, objects: Path, commit: str) -> bool:
    """Return whether tracked files of a checkout differ from a commit.

    `index` and `objects` are the paths of the index and of the object database of the checkout.

    Raises:
        OSError, subprocess.SubprocessError, ValueError: git is missing, takes too long, or fails.
    """
    with tempfile.TemporaryDirectory(prefix="redistill-") as own:
        for name in ("objects", "refs"):
            (Path(own) / name).mkdir()
        (Path(own) / "HEAD").write_text(f"{commit}\n", encoding="utf-8")
        variables = {
            "PATH": os.environ.get("PATH", os.defpath),
            "GIT_DIR": own,
            "GIT_WORK_TREE": str(checkout),
            "GIT_OBJECT_DIRECTORY": str(objects),
            "GIT_INDEX_FILE": str(index),
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_OPTIONAL_LOCKS": "0",  # git must not write the refreshed index
        }
        command = ["git", "diff", "--quiet", "--no-ext-diff", "--no-textconv", "--ignore-submodules", commit, "--"]
        done = subprocess.run(command, cwd=own, env=variables, capture_output=True, check=False, timeout=_GIT_SECONDS)
        if done.returncode not in (0, 1):
            raise ValueError(f"git diff: has the exit code {done.returncode}; must be 0 or 1")
        return done.returncode == 1
