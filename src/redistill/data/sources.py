"""Sources of data: files, folders, and data sets of the Hugging Face hub.

This module finds the files of a source, and `formats` reads their rows.  A source that looks like a path is never requested
from the hub, since a stranger could have registered a data set under the name of a mistyped path.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

from redistill.data.columns import check_columns
from redistill.data.formats import FORMATS, file_format
from redistill.errors import ConfigError, DataError, first_line
from redistill.storage.hub import HUB_NAME, is_local, unreachable
from redistill.storage.paths import expanded, unusable
from redistill.storage.redaction import plain_line

ENDINGS = "a .jsonl, .json, .csv, .tsv, .parquet or .arrow file"
"""The files that can be read, for error messages; text files may also be compressed with gzip."""

HUB_FORMS = "owner/name, owner/name:CONFIG, owner/name@REVISION, owner/name[SPLIT] and owner/name[:1%]"
"""The forms of the name of a hub data set, for error messages."""

_OWNER_NAME = HUB_NAME.pattern
_NAME = re.compile(rf"(?P<path>{_OWNER_NAME})(?::(?P<config>[\w.+-]+))?(?:@(?P<revision>[\w./-]+))?(?:\[(?P<split>.+)\])?")
_SLICE = re.compile(r"-?\d*%?:-?\d*%?")
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test",),
}


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file, a folder or a data set of the hub, with the part to read.

    In a recipe, a source may also be one text, such as `mine.parquet` or `owner/name:CONFIG@REVISION[SPLIT]`.

    Args:
        path: A file, a folder, or a hub name `owner/name`.  The endings of files are .jsonl, .json, .csv, .tsv (each also with
            .gz), .parquet and .arrow.
        config: Configuration of a hub data set; if None, the default configuration.
        split: Split of a folder or a hub data set. For a hub data set, it may also be a part of a split, such as `train[:1%]`.
            If None, the split is train in `data.train`, validation in `data.validation`, and test in `data.tests`.
        revision: Branch, tag or commit of a hub data set; if None, its main branch is read.
        columns: Maps keys of rows, such as prompt, to columns with other names; if None, `data.columns` is used.

    Raises:
        ConfigError: `path` is empty, or `columns` has an unknown key.

    Example:
        >>> Source.of("owner/name:main@v2[train[:1%]]")
        Source(path='owner/name', config='main', split='train[:1%]', revision='v2', columns=None)
    """

    path: str
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    columns: dict[str, str] | None = None

    def __post_init__(self) -> None:
        if not self.path.strip():
            raise ConfigError("path = '': must be a file, a folder or a hub name")
        check_columns(self.columns or {})

    @classmethod
    def of(cls, given: "str | Path | Source", columns: Mapping[str, str] | None = None) -> Self:
        """Return the source that a recipe names.

        Args:
            given: A path, a hub name in one of the forms in `HUB_FORMS`, or a source.
            columns: The field `columns` of the result, if `given` does not set this field.
        """
        source = given if isinstance(given, Source) else cls(path=str(given))
        found = {name: value for name, value in dataclasses.asdict(source).items() if value is not None}
        match = None if isinstance(given, Path) else _NAME.fullmatch(source.path)
        if match is not None and not _is_path(source.path):
            found = {**{name: value for name, value in match.groupdict().items() if value is not None}, **found}
            found["path"] = match["path"]
        return cls(**{"columns": dict(columns) if columns else None, **found})

    @property
    def name(self) -> str:
        """The name of the source in messages, without its split."""
        return self.path + (f":{self.config}" if self.config else "") + (f"@{self.revision}" if self.revision else "")

    def named_split(self, default: str) -> str:
        """Return the split to read, which is `default` if the source names no split.

        Example:
            >>> Source(path="owner/name", split=":1%").named_split("train")
            'train[:1%]'
        """
        if self.split is None:
            return default
        return f"{default}[{self.split}]" if _SLICE.fullmatch(self.split) else self.split


class Located(NamedTuple):
    """A file, or a split of a hub data set.

    Args:
        source: The source to which the file or split belongs.
        name: Name of the file or data set in messages.
        stem: The first part of record ids.
        path: The file; None for a split of a hub data set.
        split: The split; only hub data sets need it.
    """

    source: Source
    name: str
    stem: str
    path: Path | None
    split: str


def located(source: Source, default: str) -> list[Located]:
    """Find the files of a source, or the split of a hub data set.

    In a folder, the files are the first of the following that exist:

    - the file `<split>` with an ending of `FORMATS`, such as `train.jsonl`;
    - the files `<split>-*`, such as `train-00000-of-00002.parquet`;
    - all files of the subfolder `<split>`;
    - the files `<split>` and `<split>-*` of the subfolder `data`;
    - all files of the folder, if no file name begins with the name of a split.

    Nothing is requested from the hub.

    Args:
        source: The source.
        default: The split to read if the source names no split: "train", "validation" or "test".

    Raises:
        DataError: there is no such file or folder, a file has an unsupported ending, or a setting does not apply to the source.
    """
    if (fault := unusable(source.path)) is not None:
        raise DataError(f"{plain_line(source.path)[:100]}: {fault}")
    path, split = expanded(source.path), source.named_split(default)
    if path.exists():
        _check_local(source, path)
        files = _files_of_split(path, split) if path.is_dir() else [path]
        return [_located_file(source, file, split) for file in files]
    if not is_hub_name(source.path):
        _check_no_folder_hides(source)
        shown, is_like = plain_line(source.path)[:200], f"a hub name: {HUB_FORMS}"
        raise DataError(f"{shown}: no such file or folder; give {ENDINGS}, a folder, or {is_like}")
    return [Located(source, source.name, path.name, None, split)]


def is_hub_name(path: str) -> bool:
    """Return whether a text that is not an existing path is a valid hub name."""
    return HUB_NAME.fullmatch(path) is not None and file_format(Path(path)) is None and not is_local(path)


def download(source: Source, hub_file: str) -> Located:
    """Download one file of a hub data set.

    `datasets.load_dataset` is not used, because it fails on a bad row, and assumes one format for the whole repository.

    Raises:
        DataError: the file cannot be downloaded.
    """
    from huggingface_hub import hf_hub_download

    unreachable()
    try:
        path = Path(hf_hub_download(source.path, hub_file, repo_type="dataset", revision=source.revision))
    except (OSError, RuntimeError, ValueError) as error:
        raise hub_failed(f"{source.name}, file {hub_file}", error) from error
    return Located(source, f"{source.name}/{hub_file}", Path(source.path).name, path, "")


def hub_rows(place: Located) -> Iterator[tuple[int, None, object]]:
    """Yield the rows of a split of a hub data set.

    Each result is a tuple (number, None, row). `number` counts the rows from 1, and `row` is a dict. The library `datasets`
    downloads the data, and runs no code of the repository.

    Raises:
        DataError: the hub does not answer, or has no such data set, configuration, revision or split.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    source = place.source
    options = {"name": source.config, "revision": source.revision, "split": place.split}
    unreachable()  # before the look-up, which would be repeated for minutes
    try:
        rows = load_dataset(source.path, **{name: value for name, value in options.items() if value is not None})
        yield from ((number, None, row) for number, row in enumerate(rows, 1))
    except (DatasetsError, OSError, RuntimeError, ValueError) as error:
        raise hub_failed(f"{source.name}, split {place.split}", error) from error


def hub_failed(what: str, error: Exception, instead: str = ".jsonl or .parquet") -> DataError:
    """Return an error for data that cannot be read from the hub.

    Args:
        what: The data set, with its split or file.
        error: The exception that the library raised.
        instead: Endings of the local files that the message suggests as a replacement.
    """
    reason = unreachable() or first_line(error)
    remedy = f"check name, config, split, revision and network, or give a local {instead} file"
    return DataError(f"{what}: cannot be read from the hub ({reason}); {remedy}")


def _is_path(text: str) -> bool:
    return is_local(text) or (unusable(text) is None and Path(text).exists())


def _check_no_folder_hides(source: Source) -> None:
    """Raise DataError if a local folder has the name of the owner of a hub data set."""
    first = source.path.partition("/")[0]
    match = _NAME.fullmatch(source.path)
    if match is not None and file_format(Path(match["path"])) is None and Path(first).is_dir():
        raise DataError(
            f"{plain_line(source.path)[:200]}: no such file or folder in the folder {first}; to read the hub data set of this "
            f"name, run from a folder that does not contain {first}"
        )


def _check_local(source: Source, path: Path) -> None:
    """Raise DataError if a setting of hub data sets is set for a local file or folder."""
    for name in ("config", "revision"):
        if (value := getattr(source, name)) is not None:
            raise DataError(
                f"{path}: {name} = {value!r}: applies to hub data sets only, and this is a local path; remove {name}"
            )
    if source.split is not None and (path.is_file() or "[" in source.split or ":" in source.split):
        remedy = "remove split; data.max_train_rows limits the number of training rows"
        what = "a file has no splits" if path.is_file() else "a part of a split can be read from hub data sets only"
        raise DataError(f"{path}: split = {source.split!r}: {what}; {remedy}")


def _located_file(source: Source, path: Path, split: str) -> Located:
    ending = file_format(path)
    if ending is None:
        what = "is a Python script, and data is never read by running code" if path.suffix == ".py" else f"is not {ENDINGS}"
        raise DataError(f"{path}: {what}; convert it to one JSON object per line (.jsonl)")
    return Located(source, str(path), path.name[: -len(ending) - 1] or path.name, path, split)


def _files_of_split(folder: Path, split: str) -> list[Path]:
    try:
        return _found_in(folder, split)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror}); check the path and its permissions") from error


def _found_in(folder: Path, split: str) -> list[Path]:
    names, files = _SPLITS.get(split, (split.lower(),)), _data_files(folder)
    whole = sorted((names.index(stem), FORMATS.index(file_format(path) or ""), path) for path, stem in files if stem in names)
    if whole:
        return [whole[0][2]]
    if parts := [path for path, stem in files if _first_word(stem) in names]:
        return parts
    if unusable(split) is None and (folder / split).is_dir() and (inner := _data_files(folder / split)):
        return [path for path, _ in inner]
    if (folder / "data").is_dir():
        inner = _data_files(folder / "data")
        if parts := [path for path, stem in inner if _first_word(stem) in names]:
            return parts
    if files and not any(_first_word(stem) in every for _, stem in files for every in _SPLITS.values()):
        return [path for path, _ in files]
    found, name = ", ".join(plain_line(path.name) for path, _ in files[:6]) or "no such file", plain_line(split)[:60]
    raise DataError(
        f"{folder}: has no {name}.jsonl or {name}.json (found: {found}) and no other data file of the split; give the "
        "path of a file, or another split"
    )


def _data_files(folder: Path) -> list[tuple[Path, str]]:
    """Return the data files of a folder with their names.

    A name is in lower case, and has no ending.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file())
    endings = {path: file_format(path) for path in files}
    return [(path, path.name[: -len(ending) - 1].lower()) for path, ending in endings.items() if ending is not None]


def _first_word(stem: str) -> str:
    """Return the split in a file name such as `train-00000-of-00002` or `train_1`."""
    return re.split(r"[-_.]", stem)[0]
