"""What identifies weights: files on this machine and of the hub by content, published tags by name."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cirbench.data.file_hashes import file_sha256s
from cirbench.models.hub import folder_of
from cirbench.models.names import PACKAGED, PACKAGED_CNN, WEIGHTS, is_file, listed, parse
from cirbench.models.trained_run import trained_run
from cirbench.seeds import digest
from cirbench.settings import Settings
from cirbench.types import CirbenchError, shown

__all__ = [
    "ASSETS", "PACKAGED", "PACKAGED_CNN", "tensors_sha256", "vectors_file", "vectors_of", "weights_files", "weights_id",
    "weights_in", "weights_of",
]

ASSETS = Path(__file__).parents[1] / "assets"


def weights_files(name: str) -> list[Path]:
    """The files behind a name of weights; none for a tag, and for a text that names no weights.

    A folder's files all count where it is named by its path alone (a method may read any of them); with `local-dir:`
    and `hf-hub:` those that its weights, preprocessing and tokenizer are read from.

    Raises:
        CirbenchError: a prefix says what is meant, and it is not there or cannot be fetched.
    """
    found = parse(name)
    if found.kind == "packaged":
        return sorted(p for p in (ASSETS / found.model).iterdir() if p.is_file())
    if found.kind == "run":
        return trained_run(found).files
    if found.kind in ("local-dir", "hf-hub"):
        folder = folder_of(found)
        return listed(folder) if folder is not None else []
    if found.kind == "file":
        return [found.path] if is_file(found.path) else []
    path = Path(name)
    try:
        if path.is_file():
            return [path] if path.suffix.lower() in WEIGHTS else []
        inside = sorted(p for p in path.iterdir() if p.is_file()) if name and path.is_dir() else []
    except (OSError, ValueError):  # a text that cannot be a path
        return []
    holds = any(p.suffix.lower() in WEIGHTS or p.name == "clip.json" for p in inside)
    return inside if holds else []


def weights_id(name: str) -> str:
    """Identifier of the weights behind a name: a hash of their files, or the name they are published under."""
    files = weights_files(name)
    if not files:
        return name
    found = parse(name)
    hashes = _hashes(files, name)
    if found.kind == "run":
        # Other weights of that run's method, its name and its id count as little as its path.
        run = trained_run(found)
        return "sha256:" + digest(["run", run.base_id or run.base, run.size, run.resize, hashes[-1]])[:32]
    # Names of files in a folder count, the folder's own path does not.
    named = [(p.name if len(files) > 1 else "", sha) for p, sha in zip(files, hashes, strict=True)]
    # One file may be read into several architectures.
    return "sha256:" + digest([found.model, named] if found.kind == "file" else named)[:32]


def _hashes(files: list[Path], name: str) -> list[str]:
    try:
        return file_sha256s(files)
    except OSError as error:
        raise CirbenchError(f"the weights {name} cannot be read: {error}. Check its permissions.") from None


def weights_in(values: Any) -> dict[str, str]:
    """Every string in some settings that names weights on this machine or of the hub -> the hash of their content."""
    if isinstance(values, str):
        return {values: weights_id(values)} if weights_files(values) else {}
    parts = values.values() if isinstance(values, Mapping) else values if isinstance(values, list | tuple) else ()
    return {name: sha for part in parts for name, sha in weights_in(part).items()}


def vectors_file(name: str) -> Path:
    """A file of word vectors; a leading `~` is the home folder.

    Raises:
        CirbenchError: there is none.
    """
    try:
        path = Path(name).expanduser()
    except RuntimeError:  # no such user
        path = Path(name)
    if not is_file(path):
        raise CirbenchError(f"there is no file of word vectors {shown(name)}. Check the path.")
    return path


def vectors_of(config: Settings) -> dict[str, Path]:
    """The files of word vectors that a Config names: text -> file.

    They are the values of fields with `json_schema_extra={"vectors": True}`. Such files have no ending of their own, so
    a field must say that its text names one; an empty text names none.

    Raises:
        CirbenchError: a file that is not there.
    """
    extras = {name: info.json_schema_extra for name, info in type(config).model_fields.items()}
    marked = [name for name, more in extras.items() if isinstance(more, dict) and more.get("vectors") is True]
    names = [str(getattr(config, name)) for name in marked if getattr(config, name)]
    return {name: vectors_file(name) for name in names}


def weights_of(config: Settings) -> dict[str, str]:
    """Every name of weights or word vectors on this machine or of the hub in a Config -> the hash of their content.

    Raises:
        CirbenchError: a file of word vectors that is not there.
    """
    out = weights_in(config.model_dump())
    for name, path in vectors_of(config).items():
        out[name] = "sha256:" + digest([["", *_hashes([path], name)]])[:32]  # as `weights_id` does for one file
    return out


def tensors_sha256(module: nn.Module) -> str:
    """sha256 of a module's parameters and buffers, names and values."""
    hasher = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        hasher.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        hasher.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return hasher.hexdigest()
