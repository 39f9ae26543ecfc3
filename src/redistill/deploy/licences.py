"""Licences of models for the model card, read from the folders of the models.

Nothing is looked up on the hub. For a hub model, its card in the local cache is read.
"""

from collections.abc import Mapping
from pathlib import Path

from redistill.deploy.source import Source
from redistill.reports.folders import at, read_object
from redistill.runs.folder import RUN_FILE
from redistill.storage.hub import HUB_NAME, is_local
from redistill.storage.paths import expanded

UNKNOWN = "unknown: check"
_CARD = "README.md"
_MAX_BYTES = 1_000_000  # a larger card is not read


def licences_of(source: Source) -> Mapping[str, str]:
    """Return the licence of each model that a student was made from.

    Args:
        source: The student.

    Returns:
        A mapping from the name of each model to its licence. The licence is that of the model card in the model's folder, or
        "unknown: check" if the card states none. For the student of a run, the models are the teacher and the base model in
        run.json. For any other model, the only entry is the model itself.
    """
    names = [source.model]
    if source.run is not None:
        config = at(read_object(source.run / RUN_FILE), "config")
        named = [at(config, role, "model") for role in ("teacher", "student")]
        names = [str(name) for name in named if name and name != "teacher"]
    return {name: _licence(name) for name in dict.fromkeys(names)}


def _licence(name: str) -> str:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.repocard import metadata_load

    try:
        card = expanded(name) / _CARD
        is_linked = card.is_symlink()  # to a file that may not belong to the model
        if not is_local(name) and not Path(name).exists() and HUB_NAME.fullmatch(name):
            cached = try_to_load_from_cache(name, _CARD)
            card = Path(cached) if isinstance(cached, str) else card
        if is_linked or not card.is_file() or card.stat().st_size > _MAX_BYTES:
            return UNKNOWN
        named = (metadata_load(card) or {}).get("license")
    except Exception:  # noqa: BLE001 - a card is an untrusted file, and the YAML in it may be damaged in any way
        return UNKNOWN
    return named if isinstance(named, str) and named.strip() else UNKNOWN
