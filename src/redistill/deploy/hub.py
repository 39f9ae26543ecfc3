"""Upload of an exported folder to the model hub.

Nothing is contacted unless a function of this module is called.
"""

from pathlib import Path
from typing import Protocol

from redistill.errors import ConfigError, OutputError, first_line
from redistill.storage.hub import HUB_NAME
from redistill.storage.redaction import plain_line


class HubApi(Protocol):
    """The methods of `huggingface_hub.HfApi` that redistill uses."""

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> object: ...

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> object: ...


def check_push(repository: str) -> None:
    """Check that a folder can be uploaded, without using the network.

    Args:
        repository: Name of the repository, as owner/name.

    Raises:
        ConfigError: the name is not of the form owner/name, no access token is stored, or HF_HUB_OFFLINE is set.
    """
    from huggingface_hub import constants, get_token

    if not HUB_NAME.fullmatch(repository):
        raise ConfigError(f"--push {plain_line(repository)[:100]}: must be OWNER/NAME, the name of a repository on the hub")
    if constants.HF_HUB_OFFLINE:
        raise ConfigError(f"--push {repository}: HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it")
    if get_token() is None:
        raise ConfigError(f"--push {repository}: no access token of the hub is stored; set HF_TOKEN, or run `hf auth login`")


def push(folder: Path, repository: str, api: HubApi | None = None) -> str:
    """Upload the files of a folder to a repository on the hub.

    A repository that does not exist is created as a private one.

    Args:
        folder: The exported folder.
        repository: Name of the repository, as owner/name.
        api: The client of the hub; if None, a client with the token of this user is created.

    Returns:
        The address of the repository.

    Raises:
        OutputError: the hub cannot be reached, or it rejects the upload.
    """
    from huggingface_hub import HfApi, constants

    client: HubApi = HfApi() if api is None else api
    try:
        client.create_repo(repository, private=True, exist_ok=True)
        client.upload_folder(repo_id=repository, folder_path=folder, commit_message="Export of redistill")
    except Exception as error:  # the library raises errors of several other libraries
        reason = plain_line(first_line(error))[:200]
        raise OutputError(
            f"--push {repository}: could not be uploaded ({reason}); check the token and the network, then run "
            f"`hf upload {repository} {folder}`"
        ) from error
    return f"{constants.ENDPOINT}/{repository}"
