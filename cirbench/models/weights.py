"""Where weights come from and what identifies them: files on this machine by content, published ones by name."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import socket
import textwrap
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cirbench.data.file_hashes import file_sha256s
from cirbench.seeds import digest

__all__ = [
    "ASSETS", "PACKAGED", "PACKAGED_CNN", "fetching", "reason", "tensors_sha256", "weights_files", "weights_id",
    "weights_in",
]

ASSETS = Path(__file__).parents[1] / "assets"
#: CLIPs that ship with the package.
PACKAGED = ("scenes-small", "scenes-medium")
PACKAGED_CNN = ("scenes-cnn",)


#: Endings of files that hold weights.
WEIGHTS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".npz")


def weights_files(name: str) -> list[Path]:
    """The local files behind a name of weights; none for weights that are published under a name.

    A packaged name, a folder with files of weights in it (all of its files count), or one such file.
    """
    if name in (*PACKAGED, *PACKAGED_CNN):
        return sorted(p for p in (ASSETS / name).iterdir() if p.is_file())
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
    # Names of files in a folder count, the folder's own path does not.
    named = [(p.name if len(files) > 1 else "", sha) for p, sha in zip(files, file_sha256s(files), strict=True)]
    return "sha256:" + digest(named)[:32]


def weights_in(values: Any) -> dict[str, str]:
    """Every string in some settings that names local weights -> the hash of their content."""
    if isinstance(values, str):
        return {values: weights_id(values)} if weights_files(values) else {}
    parts = values.values() if isinstance(values, Mapping) else values if isinstance(values, list | tuple) else ()
    return {name: sha for part in parts for name, sha in weights_in(part).items()}


def tensors_sha256(module: nn.Module) -> str:
    """sha256 of a module's parameters and buffers, names and values."""
    hasher = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        hasher.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        hasher.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return hasher.hexdigest()


@contextlib.contextmanager
def fetching() -> Iterator[None]:
    """Load weights by name without the libraries' own logs; an error is reported once, by the caller.

    Where the Hugging Face hub cannot be reached its cache is read at once, instead of after a minute of retries.
    """
    from huggingface_hub import constants

    was, disabled = constants.HF_HUB_OFFLINE, logging.root.manager.disable
    try:
        if not urllib.request.getproxies():
            socket.getaddrinfo(urllib.parse.urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        constants.HF_HUB_OFFLINE = True
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = was
        logging.disable(disabled)


def reason(error: Exception) -> str:
    """The first line of a library's error message, shortened."""
    said = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {textwrap.shorten(said.rstrip('.'), 200, placeholder=' ..')}."


