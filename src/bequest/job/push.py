"""Put a finished model on a hub, when asked to."""

from __future__ import annotations

from pathlib import Path

from ..types import FolderError


def push(folder: Path, repository: str) -> str:
    """Upload a model folder and return its address. A repository that does not exist yet is made private.

    Raises FolderError when the hub cannot be reached or refuses.
    """
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    try:
        api = HfApi(library_name="bequest")
        address = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Trained with Bequest")
    except (HFValidationError, httpx2.HTTPError, OSError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise FolderError(
            f"cannot push {folder} to {repository} ({first}); log in with hf auth login, check the name, and run again"
        ) from None
    return str(address)
