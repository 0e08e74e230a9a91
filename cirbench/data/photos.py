"""Pictures that are encoded as they come and not kept: for folders that change, and galleries of millions.

A dataset's pictures are resized once and stored (`images`); a million of them at 224 pixels would be 150 GB.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from cirbench.data.crops import middle
from cirbench.data.image_files import DESCRIBED, EXTENSIONS, Reading, decode
from cirbench.data.images import resized
from cirbench.data.outside import files_below
from cirbench.types import CirbenchError, Frozen, Inputs, Pixels

__all__ = ["encoder_inputs", "open_photo", "photos_below"]

#: Photographs lie on disk as cameras and editors left them.
READING = Reading(True, "white")


def photos_below(folder: Path) -> list[str]:
    """Paths of the picture files below a folder, relative to it, in order.

    Raises:
        CirbenchError: no such folder, or no picture in it.
    """
    if not folder.is_dir():
        near = next((p for p in (folder.parent, *folder.parent.parents) if p.is_dir()), Path())
        raise CirbenchError(f"no such folder: {folder}; the nearest that exists is {near}.")
    found = [p.relative_to(folder).as_posix() for p in files_below(folder) if p.suffix.lower() in EXTENSIONS]
    if not found:
        raise CirbenchError(f"{folder} holds no picture ({', '.join(EXTENSIONS)}).")
    return sorted(found)


def open_photo(path: Path) -> PIL.Image.Image:
    """A photograph, upright and on white.

    Raises:
        CirbenchError: no file, or none that can be decoded.
    """
    if not path.is_file():
        raise CirbenchError(f"no such picture: {path}.")
    found = decode(path, READING)
    if found.image is None:
        detail = f" ({found.detail})" if found.detail else ""
        raise CirbenchError(f"{path}: {DESCRIBED[found.problem]}{detail}.")
    return found.image


def _normalised(images: Sequence[PIL.Image.Image], wanted: Pixels) -> Tensor:
    """(B, 3, size, size), exactly what `images.PixelStore` makes of the same pictures."""
    side, size = wanted.side, wanted.size
    start = middle(side, size)

    def one(image: PIL.Image.Image) -> np.ndarray:
        whole = np.asarray(resized(image, side, wanted.resize, wanted.interpolation, wanted.pad))
        return whole[start : start + size, start : start + size]

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        block = np.stack(list(pool.map(one, images)))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) * 255 for values in (wanted.mean, wanted.std))
    return torch.from_numpy(block).permute(0, 3, 1, 2).to(torch.float32).sub_(mean).div_(std)


def encoder_inputs(inputs: Inputs, images: Iterable[PIL.Image.Image], device: torch.device) -> dict[str, Tensor]:
    """Input name -> tensor of B images: pixels, or features of the frozen encoder.

    Args:
        inputs: of a method.
        images: B pictures.
        device: of the method.
    """
    images, out = list(images), {}
    for name, wanted in inputs.images.items():
        pixels = wanted.encoder.pixels if isinstance(wanted, Frozen) else wanted
        block = _normalised(images, pixels).to(device)
        if isinstance(wanted, Frozen):
            with torch.inference_mode():
                block = wanted.encoder.to(device).encode_images(block).float()
        out[name] = block
    return out
