"""Where weights are: a path, a run, a short name, an https address, or a repository of the Hugging Face Hub.

Every command and config key that takes weights calls `find_weights`.
"""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

from ..config.saved import is_remote
from ..errors import UserError
from .checkpoint import FOREIGN, PICKLED
from .download import NotFoundError, cache_folder, check_url, download
from .known import RELEASES

_SUFFIXES = (*PICKLED, *FOREIGN)


def find_weights(name: str | Path) -> Path:
    """Find weights, and download them if they are not on this machine.

    Args:
        name: an existing file, which is returned as it is; the folder of a run; a short name of `known.py`; an https
            address; `hf://OWNER/REPO[/FILE]`; or `OWNER/REPO`.  Existing files and folders have priority.

    Returns:
        A weights file; downloaded files lie in `cache_folder()`, with their config.yaml if there is one.

    Raises:
        UserError: if there are no weights.
    """
    text = os.fspath(name)
    place = Path(os.path.expanduser(text))  # `Path.expanduser` raises for an unknown user
    if place.is_file():
        return place
    if place.is_dir():
        return _in_run(place)
    if text in RELEASES:
        release = RELEASES[text]
        return download(release.url, cached_release(text), text, release.licence, release.sha256)
    if text.startswith("hf://") or ("://" not in text and is_remote(text)):
        from .hub import download_repository

        return download_repository(text.removeprefix("hf://"))
    if "://" in text:
        return _download(text)
    raise UserError(
        f"{text}: no such weights; give a weights file, the folder of a run, a name of `l2g weights`, "
        "https://... or hf://OWNER/REPO"
    )


def cached_release(name: str) -> Path:
    """Where the file of a short name lies after its download, or is copied by hand."""
    return cache_folder() / "weights" / RELEASES[name].file


def marked_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that the text file `last_checkpoint` of a run names, or None if there is no such file.

    Raises:
        UserError: if the file holds no name of a file in that folder.
    """
    marker = folder / "last_checkpoint"
    if not marker.exists():
        return None
    try:
        name = marker.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        name = ""
    if not name.isprintable() or Path(name).name != name or not name:
        raise UserError(f"{marker}: damaged. Write the name of a checkpoint of that folder into it.")
    return folder / name


def _in_run(folder: Path) -> Path:
    # The marker has priority: model_final.pth may be left over from an earlier run in the same folder.
    last = marked_checkpoint(folder)
    if last is not None:
        if last.is_file():
            return last
        raise UserError(f"{folder / 'last_checkpoint'}: names {last.name}, which is not in that folder")
    for file in ("model_final.pth", "model.safetensors"):
        if (folder / file).is_file():
            return folder / file
    raise UserError(
        f"{folder}: no weights in this folder (no last_checkpoint, model_final.pth or model.safetensors)"
    )


def _download(url: str) -> Path:
    """A file at an https address, with the config.yaml beside it if there is one."""
    check_url(url)
    parts = urlsplit(url)
    file = re.sub(r"[^\w.-]", "_", unquote(parts.path.rpartition("/")[2]))
    if not file.endswith(_SUFFIXES):
        raise UserError(
            f"{url}: expected the address of a {', '.join(_SUFFIXES[:-1])} or {_SUFFIXES[-1]} file."
        )
    folder = cache_folder() / "url" / hashlib.sha256(url.encode()).hexdigest()[:16]
    if not (folder / file).is_file():
        beside = urljoin(url, "config.yaml") + (f"?{parts.query}" if parts.query else "")
        with suppress(NotFoundError):
            download(beside, folder / "config.yaml", "config.yaml")
    return download(url, folder / file, file)
