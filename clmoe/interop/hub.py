"""Putting an exported folder on the Hugging Face Hub, only when it was asked for."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from clmoe.errors import ClmoeError, UsageError


def check_repo_id(repo_id: str) -> None:
    """Refuse what cannot be a repository's name.

    Raises:
        UsageError: It is not NAME or USER/NAME.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UsageError(
            f"{repo_id!r} is no name of a repository: {str(error).splitlines()[0]}",
            hint="--push USER/NAME",
        ) from error


def push_folder(folder: Path, repo_id: str) -> str:
    """Upload a folder as one commit to a model repository, which is made private if it is new.

    Args:
        folder: What to upload.
        repo_id: USER/NAME, or NAME for the user's own.

    Returns:
        The repository's address.

    Raises:
        ClmoeError: There is no token, or the hub cannot be reached or refuses; the folder stays.
    """
    hint = f"the folder stays; hf auth login, then: hf upload {repo_id} {folder}"
    if get_token() is None:
        raise ClmoeError(
            f"{folder} is written, but not pushed to {repo_id}: this machine has no token of the "
            "hub",
            hint=hint,
        )
    api = HfApi()
    try:
        made = api.create_repo(repo_id, repo_type="model", private=True, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id,
            folder_path=folder,
            repo_type="model",
            commit_message="Add an adapter exported by clmoe",
        )
    except Exception as error:  # the client raises its transport's errors as they are
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ClmoeError(
            f"{folder} is written, but not pushed to {repo_id}: {type(error).__name__}: {first}",
            hint=hint,
        ) from error
    return str(made)
