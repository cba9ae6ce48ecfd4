"""Weights in repositories of the Hugging Face Hub; needs the extra `hub`."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import UserError, first_line
from ..limits import MAX_DOWNLOAD
from .checkpoint import FOREIGN, PICKLED
from .download import cache_folder, megabytes, say

_CONFIG = "config.yaml"
#: Names of weights files, in order of preference.
_PREFERRED = ("model.safetensors", "model_final.safetensors", "model_final.pth")


def download_repository(text: str) -> Path:
    """Download weights from a repository, and their config.yaml if there is one.

    Interrupted downloads are resumed.  Without a network, the files of an earlier download are used.

    Args:
        text: `OWNER/REPO`, `OWNER/REPO@REVISION`, or one of them with `/FILE`.

    Raises:
        UserError: if the repository or the file does not exist, or cannot be downloaded.
    """
    match = re.fullmatch(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w.-]+))?(?:/(.+))?", text)
    if match is None or ".." in PurePosixPath(text).parts:
        raise UserError(
            f"hf://{text}: expected hf://OWNER/REPO, hf://OWNER/REPO/FILE or hf://OWNER/REPO@REVISION"
        )
    repository, revision, file = match.groups()
    api, folder = _api(text), cache_folder() / "hub"
    try:
        with _errors(repository):
            return _download(api, repository, revision, file, folder)
    except _UnreachableError as error:
        return _cached(api, repository, revision, file, folder, error)


def _download(api: Any, repository: str, revision: str | None, file: str | None, folder: Path) -> Path:
    info = api.model_info(repository, revision=revision, files_metadata=True, timeout=30)
    sizes = {entry.rfilename: entry.size or 0 for entry in info.siblings or ()}
    chosen = _choose(sizes, file, repository)
    if sizes[chosen] > MAX_DOWNLOAD:
        limit = megabytes(MAX_DOWNLOAD)
        raise UserError(f"hf://{repository}: {chosen} has {megabytes(sizes[chosen])}, the limit is {limit}.")
    licence = getattr(info.card_data, "license", None) or "licence unknown"
    say(f"hf://{repository}: {chosen} ({megabytes(sizes[chosen])}, {licence}), cached in {folder}")
    beside = str(PurePosixPath(chosen).with_name(_CONFIG))
    if beside in sizes:
        api.hf_hub_download(repository, beside, revision=revision, cache_dir=folder)
    return Path(api.hf_hub_download(repository, chosen, revision=revision, cache_dir=folder))


def upload_folder(folder: Path, repository: str, private: bool) -> str:
    """Upload the files of a folder to a repository, which is created if missing.

    Args:
        folder: the files.
        repository: `OWNER/REPO`.
        private: whether a new repository is private.

    Returns:
        The address of the repository.

    Raises:
        UserError: if the Hub refuses or cannot be reached.
    """
    api = _api(repository)
    try:
        with _errors(repository):
            created = api.create_repo(repository, private=private, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload with l2g push")
    except _UnreachableError as error:
        raise UserError(str(error)) from error
    return str(created)


def _api(text: str) -> Any:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UserError(
            f"{text}: no such file or folder here; the Hugging Face Hub needs: pip install 'local2global[hub]'"
        )
    from huggingface_hub import HfApi

    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="local2global")


def _choose(files: Iterable[str], file: str | None, repository: str) -> str:
    """The weights file to load.

    Raises:
        UserError: if there is none, or several without a usual name.
    """
    files = list(files)
    weights = [name for name in files if name.endswith((*PICKLED, *FOREIGN))]
    if file is not None:
        if file not in files:
            raise UserError(f"hf://{repository}: no file {file}. Its weights: {', '.join(weights) or 'none'}")
        return file
    usual = [name for name in _PREFERRED if name in weights]
    if not usual and len(weights) != 1:
        listed = (
            f"several weights files; name one: hf://{repository}/{weights[0]}"
            if weights
            else "no weights file"
        )
        raise UserError(f"hf://{repository}: {listed}")
    return (usual or weights)[0]


def _cached(
    api: Any, repository: str, revision: str | None, file: str | None, folder: Path, error: Exception
) -> Path:
    """The file of an earlier download, if it was named or has a usual name."""
    for name in (file,) if file else _PREFERRED:
        with suppress(Exception):  # not in the cache
            options = {"revision": revision, "cache_dir": folder, "local_files_only": True}
            path = Path(api.hf_hub_download(repository, name, **options))
            say(f"{error}; using the copy {path}")
            return path
    raise UserError(f"{error}, and {folder} has no copy") from error


class _UnreachableError(Exception):
    """The Hub cannot be reached."""


@contextmanager
def _errors(repository: str) -> Iterator[None]:
    """Turns errors of huggingface_hub, whose HTTP library differs by version, into one line."""
    from huggingface_hub import errors

    place = f"hf://{repository}"
    try:
        yield
    except errors.GatedRepoError as error:
        raise UserError(
            f"{place}: access must be requested on its page, then log in: hf auth login"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{repository}: no such file or folder here, and no such repository on the Hugging Face Hub "
            "(a private one needs: hf auth login)"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise _UnreachableError(f"{place}: the Hub cannot be reached ({first_line(error)})") from error
    except (errors.RevisionNotFoundError, errors.EntryNotFoundError) as error:
        raise UserError(f"{place}: no such revision or file") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        reason = getattr(error, "server_message", None) or first_line(error)
        login = ". Log in: hf auth login" if status in (401, 403) else ""
        raise UserError(f"{place}: the Hub refuses (HTTP {status}: {reason}){login}") from error
    except errors.HFValidationError as error:
        raise UserError(f"{place}: {first_line(error)}") from error
    except (UserError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise _UnreachableError(f"{place}: the Hub cannot be reached ({first_line(error)})") from error
