"""Upload of an export to a model hub."""

from pathlib import Path

from huggingface_hub import HfApi, constants, get_token

from ..distill.errors import DistillError
from ..encoders.loading.hub import without_hub_bars
from ..encoders.loading.language_models import first_line


def require_login(repository: str) -> None:
    """Refuse an upload that the hub would refuse, before anything is computed.

    Raises:
        DistillError: there is no token, or the hub must not be asked.
    """
    if constants.HF_HUB_OFFLINE:
        raise DistillError(f"--push {repository}: HF_HUB_OFFLINE is set: unset it, or export without --push")
    if not get_token():
        raise DistillError(
            f"--push {repository}: no token for {constants.ENDPOINT}: run `hf auth login`, or set HF_TOKEN"
        )


def upload(folder: Path, repository: str, *, private: bool) -> str:
    """Create a repository if there is none, and commit all files of a folder to it; returns its URL.

    Args:
        folder: an export.
        repository: ORG/NAME.
        private: of a repository that is created here.

    Raises:
        DistillError: the hub refuses, or cannot be reached; the export stays where it is.
    """
    api = HfApi(endpoint=constants.ENDPOINT)
    try:
        with without_hub_bars():
            api.create_repo(repository, private=private, exist_ok=True)
            # Files of an earlier export that this one does not have would be loaded with it.
            api.upload_folder(
                repo_id=repository, folder_path=folder, commit_message="Export by clipglot", delete_patterns="*"
            )
    except Exception as error:  # of the hub and its HTTP library, of many kinds
        reasons = [_without_token(first_line(each)).rstrip(".") for each in (error, error.__cause__) if each]
        raise DistillError(
            f"--push {repository}: {': '.join(reasons)}. The export is complete in {folder}: upload it with "
            f"`hf upload {repository} {folder}`"
        ) from None  # its own text may hold the request
    return f"{constants.ENDPOINT}/{repository}"


def _without_token(text: str) -> str:
    """A message without the token, whatever put it there."""
    token = get_token()
    return text.replace(token, "…") if token else text
