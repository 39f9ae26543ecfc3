"""Checkpoints of a run: `checkpoints/step-N/`, written atomically.

A checkpoint consists of safetensors files, JSON and a manifest.  It is written under a temporary name and renamed, so a
crash at any moment does not damage earlier checkpoints.  SHA-256 hashes cover every byte: a run that resumes detects
damage, and continues from the newest valid checkpoint.  Nothing is pickled.  The caller defines the meaning of tensors and
state. The argument `folder` of a public function is the folder of all checkpoints of a run.
"""

import hashlib
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

import torch

from redistill.errors import CheckpointError, DataError, OutputError
from redistill.interfaces import Value
from redistill.processes.placement import placed_like
from redistill.storage import files, folders
from redistill.storage import tensors as tensor_files
from redistill.storage.json_text import JsonError, parse_json
from redistill.storage.redaction import plain, plain_line
from redistill.storage.tensors import read_tensors, write_tensors

SCHEMA = 2
MANIFEST = "manifest.json"
SEAL = "manifest.sha256"
STATE = "state.json"
IDENTITY = "identity.json"
SUFFIX = ".safetensors"


class Contents(dict[str, Value]):
    """The tensors or the state of a checkpoint, by name.

    Access to a missing name raises a `CheckpointError`.
    """

    def __init__(self, owner: str, values: Mapping[str, Value]) -> None:
        super().__init__(values)
        self.owner = owner

    def __missing__(self, name: str) -> NoReturn:
        raise CheckpointError(
            f"{self.owner}: has no '{name}' (it has {plain_line(', '.join(sorted(self)))[:300] or 'nothing'}); "
            "the checkpoint was written by a run with other settings; set `out` to a new folder"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """The verified content of a checkpoint.

    Args:
        step: Number of updates done when the checkpoint was saved.
        folder: The folder of this checkpoint.
        tensors: Groups of tensors by name, such as "model" and "optimizer".  The tensors are on the CPU and memory-mapped, so
            copy them before the files are removed.
        state: The JSON state.
        skipped: One line for each newer checkpoint that was skipped: its fault, and the checkpoint that was loaded instead.
    """

    step: int
    folder: Path
    tensors: Mapping[str, Mapping[str, torch.Tensor]]
    state: Mapping[str, Any]
    skipped: tuple[str, ...] = ()


class _Damaged(Exception):
    """Raised for an invalid checkpoint; `load` then tries the previous one."""


# --- identity of the run --------------------------------------------------------------------------------------------------


def identity(folder: Path) -> dict[str, str]:
    """Read the hashes that identify the run whose checkpoints are in `folder`.

    Returns the hashes by name, or an empty dict if the identity file is missing or damaged.
    """
    try:
        held = files.read_json(folder / IDENTITY)
        run = held["run"]
        return dict(run) if isinstance(run, dict) and held == _sealed(run) else {}
    except (ValueError, OSError, TypeError, KeyError):  # ValueError: damaged JSON, or NaN, which is never written
        return {}


def _sealed(run: object) -> dict[str, object]:
    return {"run": run, "sha256": hashlib.sha256(files.json_bytes(run)).hexdigest()}


def check_identity(folder: Path, mine: Mapping[str, str]) -> list[str]:
    """Raise an error if a folder contains checkpoints of another run.

    Args:
        mine: Hashes that identify this run, by name, such as "training data".

    Returns:
        Names in `mine` that cannot be checked, because an earlier version wrote the checkpoints without these hashes.

    Raises:
        CheckpointError: a hash differs from the one that `write_identity` stored.
    """
    held = identity(folder)
    if other := _differences(held, mine):
        raise CheckpointError(
            f"{folder}: its checkpoints belong to a run with different {other[0]}; "
            f"restore the {other[0]} of that run, or use a new folder"
        )
    return [plain(name) for name in mine if name not in held] if steps(folder) else []


def write_identity(folder: Path, mine: Mapping[str, str]) -> None:
    """Store the hashes that identify this run.

    The manifest of each checkpoint contains the same hashes.  `load` skips a checkpoint whose hashes differ from those of
    the folder.

    Raises:
        CheckpointError: a hash differs from the one that the folder stores already.
        OutputError: the file cannot be written.
    """
    check_identity(folder, mine)
    files.write_json(files.make_folder(folder) / IDENTITY, _sealed({**mine, **identity(folder)}))


def _differences(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """Return the names that are in both mappings with different values."""
    return [plain(name) for name in one if name in other and one[name] != other[name]]


# --- writing ------------------------------------------------------------------------------------------------------------


def save(
    folder: Path,
    step: int,
    *,
    tensors: Mapping[str, Mapping[str, torch.Tensor]],
    state: Mapping[str, object],
    keep: int,
    protect: Collection[int] = (),
) -> Path:
    """Write the checkpoint `step-N`, then remove checkpoints that are not needed.

    The `keep` newest checkpoints up to `step` are kept.  Checkpoints of later steps are removed: they are damaged, and were
    skipped when the run resumed.  No protected checkpoint is removed, and none before the new checkpoint has been verified.

    Args:
        folder: The folder of the run's checkpoints, such as `<run folder>/checkpoints`.
        step: Number of updates done, >= 0.
        tensors: Groups of tensors; each becomes `<group>.safetensors`.  Tied tensors are stored once and are tied when loaded.
        state: All other values, which are stored as JSON: no NaN, and only strings as keys.  Tuples are loaded as lists.
        keep: Number of newest checkpoints to keep, including this one, >= 1.
        protect: Steps whose checkpoints are never removed, such as the best one.

    Returns:
        The checkpoint's folder.

    Raises:
        OutputError: the checkpoint cannot be written; earlier ones are unchanged.  `DiskFullError` if the disk is full.
    """
    assert step >= 0 and keep >= 1 and all(files.slug(group) == group for group in tensors), (step, keep, *tensors)
    files.make_folder(folder)
    folders.remove_leftovers(folder)
    target = _folder_of(folder, step)
    with folders.new_folder(target, num_bytes(tensors, state)) as temporary:
        named = {f"{group}{SUFFIX}": members for group, members in tensors.items()}
        hashes = {name: write_tensors(temporary / name, members) for name, members in named.items()}
        hashes[STATE] = files.write_json(temporary / STATE, dict(state))
        listed = {name: {"bytes": (temporary / name).stat().st_size, "sha256": sha256} for name, sha256 in hashes.items()}
        manifest = {"schema": SCHEMA, "step": step, "run": identity(folder), "files": listed}
        seal = files.write_json(temporary / MANIFEST, manifest)
        files.write_text(temporary / SEAL, f"{seal}  {MANIFEST}\n")
    try:
        _verify(target)
    except _Damaged as error:
        raise OutputError(f"{_label(target)}: {error}, although it was just written; check the disk") from error
    numbers = steps(folder)
    for number in sorted({*numbers} - {*[number for number in numbers if number <= step][-keep:], *protect}):
        folders.remove_folder(_folder_of(folder, number))
    return target


def num_bytes(tensors: Mapping[str, Mapping[str, torch.Tensor]], state: Mapping[str, object]) -> int:
    """Compute the size on disk of a checkpoint with this content, in bytes.

    The manifest, about one kilobyte, is not included.

    Args:
        tensors: Groups of tensors as in `save`; tensors on the device "meta" count as if they had data.
        state: JSON values as in `save`.
    """
    return sum(map(tensor_files.num_bytes, tensors.values())) + len(files.json_bytes(dict(state)))


# --- reading ------------------------------------------------------------------------------------------------------------


def steps(folder: Path) -> list[int]:
    """List the steps of the checkpoints in `folder`, in ascending order.

    Damaged checkpoints are included; the temporary folders of interrupted saves are not.
    """
    names = (re.fullmatch(r"step-(0|[1-9]\d*)", path.name) for path in folder.glob("step-*"))
    return sorted(int(match[1]) for match in names if match)


def load(folder: Path) -> Checkpoint | None:
    """Load the newest valid checkpoint; return None if `folder` has no checkpoints.

    Damaged checkpoints are skipped.  The field `skipped` of the result lists their faults.

    Raises:
        CheckpointError: all checkpoints are damaged, or a checkpoint has another schema.
    """
    faults: list[str] = []
    for step in reversed(steps(folder)):
        try:
            found = _read(_folder_of(folder, step))
            return replace(found, skipped=tuple(f"{fault}; resumed from step-{step}" for fault in faults))
        except _Damaged as error:
            faults.append(f"{folder.name}/step-{step}: {error}")
    if faults:
        raise CheckpointError(f"{folder}: no valid checkpoint ({'; '.join(faults)}); remove the folder to start from scratch")
    return None


def load_step(folder: Path, step: int) -> Checkpoint:
    """Load the checkpoint that was saved after `step` updates.

    Raises:
        CheckpointError: the checkpoint is missing or damaged.
    """
    path = _folder_of(folder, step)
    if not path.is_dir():
        saved = ", ".join(map(str, steps(folder))) or "none"
        raise CheckpointError(f"{folder}: has no step-{step} (saved steps: {saved}); choose one of these")
    try:
        return _read(path)
    except _Damaged as error:
        raise CheckpointError(f"{_label(path)}: {error}; choose another checkpoint") from error


def _read(folder: Path) -> Checkpoint:
    names = _verify(folder)
    try:
        groups = {name.removesuffix(SUFFIX): read_tensors(folder / name) for name in names if name.endswith(SUFFIX)}
        state = files.read_json(folder / STATE)
    except DataError as error:
        raise _Damaged(plain(str(error))) from error
    if not isinstance(state, dict):
        raise _Damaged(f"{STATE} is not a JSON object")
    step, label = int(folder.name.removeprefix("step-")), _label(folder)
    tensors, values = Contents(label, groups), Contents(f"{label}/{STATE}", state)
    return Checkpoint(step=step, folder=folder, tensors=tensors, state=values)


def _verify(folder: Path) -> list[str]:
    """Check every file of a checkpoint against the manifest; return the file names.

    The manifest is parsed only if its hash is correct, so damaged JSON is never parsed.
    """
    manifest = _read_or_damaged(folder / MANIFEST, Path.read_bytes)
    if _read_or_damaged(folder / SEAL, Path.read_bytes) != f"{hashlib.sha256(manifest).hexdigest()}  {MANIFEST}\n".encode():
        raise _Damaged(f"{MANIFEST} does not match {SEAL}")
    content = _parsed(manifest, folder)
    if f"step-{content['step']}" != folder.name:
        raise _Damaged(f"{MANIFEST} belongs to step-{content['step']}")
    if other := _differences(identity(folder.parent), content.get("run", {})):
        raise _Damaged(f"it belongs to a run with different {other[0]}")
    for name, expected in content["files"].items():
        if (
            _read_or_damaged(folder / name, lambda path: {"bytes": path.stat().st_size, "sha256": files.digest(path)})
            != expected
        ):
            raise _Damaged(f"{name} does not match its manifest")
    return list(content["files"])


def _parsed(manifest: bytes, folder: Path) -> Mapping[str, Any]:
    """Parse a manifest, and check the types of its fields and its file names.

    A matching hash does not make a manifest trusted, since anyone can compute a hash.
    """
    try:
        content = parse_json(manifest)
    except JsonError as error:
        raise _Damaged(f"{MANIFEST} is not JSON") from error
    if not isinstance(content, dict) or not isinstance(content.get("schema"), int):
        raise _Damaged(f"{MANIFEST} has no schema")
    if content["schema"] != SCHEMA:
        raise CheckpointError(
            f"{_label(folder)}: has schema {content['schema']}; this version of redistill resumes schema {SCHEMA} only; "
            "finish the run with the version that wrote it (see run.json), or choose another `out`"
        )
    types = {"step": int, "files": dict, "run": dict}
    if not all(isinstance(content.get(name, {}), kind) for name, kind in types.items()):
        raise _Damaged(f"{MANIFEST} lacks a field, or has a field of the wrong type")
    listed = content.get("files", {})
    if STATE not in listed or any(files.slug(name) != name for name in listed):
        raise _Damaged(f"{MANIFEST} does not list the files of a checkpoint")
    return content


def _read_or_damaged(path: Path, read: Callable[[Path], Value]) -> Value:
    try:
        return read(path)
    except OSError as error:
        raise _Damaged(f"{path.name} cannot be read ({error.strerror})") from error


def _folder_of(folder: Path, step: int) -> Path:
    return folder / f"step-{step}"


def _label(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"


# --- optimizers ---------------------------------------------------------------------------------------------------------


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    """Convert an optimizer's state to named tensors and JSON.

    Parameters are identified by name and not by position.  Otherwise, a change in their order would exchange their moments.

    Args:
        optimizer: Any torch optimizer whose state per parameter consists of tensors and numbers, such as AdamW, fused or not.
        parameters: `dict(module.named_parameters())` of all parameters that the optimizer updates.

    Returns:
        Two mappings.  The first has the tensors by "<state>/<parameter>", such as "exp_avg/transformer.wte.weight".  The
        second has all other values as JSON: parameter groups, scalars, and the names of the tensors.  Tensors of sharded
        parameters are sharded as well; `placement.full` gathers them.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    tensors: dict[str, torch.Tensor] = {}
    scalars: dict[str, dict[str, object]] = {}
    for parameter, values in optimizer.state.items():
        name = names[id(parameter)]
        tensors |= {f"{key}/{name}": value for key, value in values.items() if isinstance(value, torch.Tensor)}
        scalars[name] = {key: value for key, value in values.items() if not isinstance(value, torch.Tensor)}
    groups = [{**group, "params": [names[id(parameter)] for parameter in group["params"]]} for group in optimizer.param_groups]
    return tensors, {"groups": groups, "scalars": scalars, "tensors": sorted(tensors)}


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, torch.Tensor],
    tensors: Mapping[str, torch.Tensor],
    state: Mapping[str, Any],
) -> None:
    """Set `optimizer` to the exact state that `optimizer_tensors` returned.

    Hyper-parameters such as the learning rate are restored too.

    Args:
        optimizer: An optimizer of the same class over parameters of the same names, in the same groups.
        parameters: `dict(module.named_parameters())` of all parameters that the optimizer updates.
        tensors, state: The two results of `optimizer_tensors`.

    Raises:
        CheckpointError: the groups of this run and of the checkpoint have different parameters, or state tensors are missing.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    here = [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]
    there = [group["params"] for group in state["groups"]]
    if [sorted(group) for group in here] != [sorted(group) for group in there]:
        odd = sorted(set(chain(*here)) ^ set(chain(*there)))
        name = plain_line(odd[0])[:100] if odd else ""
        what = f"{len(odd)} are in only one of them, first '{name}'" if odd else "their groups differ"
        raise CheckpointError(
            f"optimizer: this run and the checkpoint have different parameters ({what}); set `out` to a new folder"
        )
    if missing := sorted(set(state["tensors"]) - set(tensors)):
        name = plain_line(missing[0])[:100]
        raise CheckpointError(
            f"optimizer: '{name}' is missing ({len(missing)} entries are missing in all); set `out` to a new folder"
        )
    entries = {name: dict(values) for name, values in state["scalars"].items()}
    for key in state["tensors"]:
        kind, name = key.split("/", 1)
        value, parameter = tensors[key].clone(), parameters[name]
        entries[name][kind] = placed_like(value, parameter) if value.shape == parameter.shape else value  # `step` is a scalar
    numbers = {name: number for number, name in enumerate(chain(*here))}  # torch's numbering
    groups = []
    for saved, current, group in zip(state["groups"], optimizer.param_groups, here, strict=True):
        tuples = {key: tuple(value) for key, value in saved.items() if isinstance(current.get(key), tuple)}  # lists in JSON
        groups.append({**saved, **tuples, "params": [numbers[name] for name in group]})
    optimizer.load_state_dict({"state": {numbers[name]: values for name, values in entries.items()}, "param_groups": groups})
