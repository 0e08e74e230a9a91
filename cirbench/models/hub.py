"""Folders of weights: named by their path, or fetched from the Hugging Face hub; and how libraries fetch weights."""

from __future__ import annotations

import contextlib
import logging
import textwrap
from collections.abc import Iterator
from pathlib import Path

from cirbench.data.hosts import door, knock
from cirbench.models.names import CONFIGS, PACKAGED, Name, is_folder, layout, listed, parts_of, pick
from cirbench.settings import nearest
from cirbench.types import CirbenchError

__all__ = ["fetching", "folder_of", "reason"]

def folder_of(name: Name) -> Path | None:
    """The folder with the weights of a name that stands for one, fetched from the hub if need be; else None.

    Raises:
        CirbenchError: no such folder, or it cannot be fetched.
    """
    if name.kind == "hf-hub":
        return fetch(name)
    if name.kind not in ("folder", "local-dir"):
        return None
    if not name.rest or not is_folder(name.path):
        near = name.path.parent
        guess = nearest(name.path.name, [p.name for p in near.iterdir() if p.is_dir()] if is_folder(near) else [])
        mean = f" Did you mean {near / guess}?" if guess else ""
        raise CirbenchError(f"{name.text}: there is no folder {name.rest!r}.{mean}")
    return name.path


def fetch(name: Name) -> Path:
    """The folder in the hub's cache that holds a repository's weights; fetched where it is not complete there.

    What is cached is used without asking: a run then needs no connection, and its id holds the content.

    Raises:
        CirbenchError: not OWNER/NAME, or it can be neither found nor fetched.
    """
    owner, slash, repository = name.rest.partition("/")
    if not owner or not slash or not repository or "/" in repository:
        raise CirbenchError(f"{name.text}: a repository of the Hugging Face hub is written hf-hub:OWNER/NAME.")
    return _cached(name.rest) or _fetched(name)


def _cached(repository: str) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repository, local_files_only=True))
        listed(folder)
    except (CirbenchError, OSError, ValueError):  # not there, or not all of it
        return None
    return folder


def _fetched(name: Name) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    try:
        with fetching():
            there = HfApi().list_repo_files(name.rest)
            # Which files count depends on what the config says.
            chosen = [n for n in CONFIGS.values() if n in there]
            folder = Path(snapshot_download(name.rest, allow_patterns=chosen))
            weights, chosen = pick(there, layout(folder))
            snapshot_download(name.rest, allow_patterns=chosen)
            if weights.endswith(".index.json"):
                parts = [p.name for p in parts_of(folder, weights, complete=False)]
                snapshot_download(name.rest, allow_patterns=[*chosen, *parts])
        listed(folder)
    except CirbenchError:
        raise
    except Exception as error:
        raise CirbenchError(
            f"{name.text} could not be fetched: {reason(error)} Check OWNER/NAME at huggingface.co. What was fetched "
            f"once is kept; without a connection name a folder (local-dir:DIR) or {PACKAGED[1]}."
        ) from None
    return folder


@contextlib.contextmanager
def fetching() -> Iterator[None]:
    """Load weights by name without the libraries' own logs; an error is reported once, by the caller.

    Where the Hugging Face hub cannot be reached its cache is read at once, instead of after a minute of retries.
    """
    from huggingface_hub import constants

    was, disabled = constants.HF_HUB_OFFLINE, logging.root.manager.disable
    if knock(*door(constants.ENDPOINT)[1]):
        constants.HF_HUB_OFFLINE = True
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = was
        logging.disable(disabled)


def reason(error: Exception) -> str:
    """The first line of a library's error message, shortened."""
    if type(error).__name__ == "OfflineModeIsEnabled":
        return "there is no connection to the hub, or HF_HUB_OFFLINE is set."
    said = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {textwrap.shorten(said.rstrip('.'), 200, placeholder=' ..')}."


