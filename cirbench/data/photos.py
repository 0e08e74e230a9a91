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
from cirbench.data.image_files import EXTENSIONS, decode, told
from cirbench.data.images import normalised, resized
from cirbench.data.outside import PHOTOS, pictures_below
from cirbench.files import nearest_folder
from cirbench.types import CirbenchError, Frozen, Inputs, Pixels

__all__ = ["encoder_inputs", "open_photo", "photos_below"]


def photos_below(folder: Path) -> list[str]:
    """Paths of the picture files below a folder, relative to it, in order.

    Raises:
        CirbenchError: no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise CirbenchError(f"no such folder: {folder}; the nearest that exists is {nearest_folder(folder)}.")
    found = pictures_below(folder)
    if not found:
        raise CirbenchError(f"{folder} holds no picture ({', '.join(EXTENSIONS)}).")
    return found


def open_photo(path: Path) -> PIL.Image.Image:
    """A photograph, upright and on white.

    Raises:
        CirbenchError: no file, or none that can be decoded.
    """
    if not path.is_file():
        raise CirbenchError(f"no such picture: {path}.")
    found = decode(path, PHOTOS)
    if found.image is None:
        raise CirbenchError(told(path, found))
    return found.image


def _pixels(images: Sequence[PIL.Image.Image], wanted: Pixels, device: torch.device) -> Tensor:
    """(B, 3, size, size), exactly what `images.PixelStore` makes of the same pictures."""
    side, size = wanted.side, wanted.size
    start = middle(side, size)

    def one(image: PIL.Image.Image) -> np.ndarray:
        whole = np.asarray(resized(image, side, wanted.resize, wanted.interpolation, wanted.pad))
        return whole[start : start + size, start : start + size]

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return normalised(np.stack(list(pool.map(one, images))), wanted, device)


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
        block = _pixels(images, pixels, device)
        if isinstance(wanted, Frozen):
            with torch.inference_mode():
                block = wanted.encoder.to(device).encode_images(block).float()
        out[name] = block
    return out
