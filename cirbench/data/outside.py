"""Captions and pictures from outside a dataset: `train.captions` and `train.pictures`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from cirbench.data import reading
from cirbench.data.file_hashes import file_sha256
from cirbench.data.image_files import EXTENSIONS, FolderImages, Reading
from cirbench.files import nearest_folder
from cirbench.types import CirbenchError

__all__ = ["PHOTOS", "caption_lines", "content", "files_below", "picture_folder", "pictures_below"]

#: Photographs lie on disk as cameras and editors left them.
PHOTOS = Reading(True, "white")

#: What systems leave in folders by themselves.
_IGNORED = ("thumbs.db", "desktop.ini")


def files_below(folder: Path) -> Iterable[Path]:
    """Files below a folder, each real folder once, whatever links lead to it; not those that systems leave there."""
    seen: set[str] = set()
    for here, below, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        below[:] = [] if real in seen else sorted(name for name in below if name != "__MACOSX")
        if real not in seen:
            yield from (Path(here, name) for name in files if name[0] != "." and name.lower() not in _IGNORED)
        seen.add(real)


def caption_lines(path: str) -> list[str]:
    """The captions of a text file, one a line; blank lines are skipped.

    Raises:
        CirbenchError: no such file, no text file, or no caption in it.
    """
    where = Path(path).expanduser()
    try:
        return [line.strip() for line in reading.read_lines(where) if line.strip()]
    except CirbenchError as error:
        said = str(error).removesuffix(" Fetch it again.")  # nobody fetched one's own captions
        raise CirbenchError(f"train.captions: {said} It wants a text file in UTF-8, one caption a line.") from None


def picture_folder(path: str) -> tuple[FolderImages, list[str]]:
    """The pictures below a folder, upright and on white, and their paths in it, which are their ids.

    Raises:
        CirbenchError: no such folder, or no picture in it.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        near = nearest_folder(folder)
        raise CirbenchError(f"train.pictures = {path!r}: no such folder; the nearest that exists is {near}.")
    ids = pictures_below(folder)
    if not ids:
        raise CirbenchError(f"train.pictures: {folder} holds no picture ({', '.join(EXTENSIONS)}).")
    return FolderImages(folder, ("{id}",), reading=PHOTOS), ids


def pictures_below(folder: Path) -> list[str]:
    """Paths of the picture files below a folder, relative to it, in order."""
    files = (p for p in files_below(folder) if p.suffix.lower() in EXTENSIONS)
    return sorted(p.relative_to(folder).as_posix() for p in files)


def content(captions: str, pictures: str) -> dict[str, str]:
    """Field of the training settings -> hash of what its path leads to, for those that are set.

    Raises:
        CirbenchError: nothing is there, or it cannot be read.
    """
    out: dict[str, str] = {}
    if captions:
        caption_lines(captions)
        out["captions"] = f"sha256:{file_sha256(Path(captions).expanduser())[:32]}"
    if pictures:
        images, ids = picture_folder(pictures)
        out["pictures"] = f"sha256:{images.fingerprint(ids)[:32]}"
    return out
