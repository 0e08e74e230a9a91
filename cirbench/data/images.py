"""Decoding and the published evaluation transforms; decoded pictures are cached on disk.

A resized picture has three bytes per pixel: 46,000 FashionIQ images at 224 px are 7 GB on disk and never decoded again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from tqdm import tqdm

from cirbench import numerics
from cirbench.data.cache import ELSEWHERE, alone, cache_dir, usable
from cirbench.data.crops import Crops, middle
from cirbench.files import allocate, writing
from cirbench.seeds import digest
from cirbench.types import ImageSource, Pixels

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


#: Values of `Pixels.pad`.
PADS = {"zero": (0, 0, 0), "white": (255, 255, 255)}


def _pad(image: PIL.Image.Image, width: int, height: int, pad: str = "zero") -> PIL.Image.Image:
    """Padding to this size, or one pixel less; both sides get equal padding."""
    x, y = max((width - image.width) // 2, 0), max((height - image.height) // 2, 0)
    out = PIL.Image.new("RGB", (image.width + 2 * x, image.height + 2 * y), PADS[pad])
    out.paste(image, (x, y))
    return out


def _padded(image: PIL.Image.Image, size: int, between: PIL.Image.Resampling, pad: str) -> PIL.Image.Image:
    """open_clip's `longest`: the longer side becomes `size`, the shorter is rounded and padded, odd pixel last."""
    ratio = max(image.size) / size
    width, height = (round(length / ratio) for length in image.size)
    out = PIL.Image.new("RGB", (size, size), PADS[pad])
    out.paste(image.resize((max(width, 1), max(height, 1)), between), ((size - width) // 2, (size - height) // 2))
    return out


def resized(
    image: PIL.Image.Image, size: int, resize: str, interpolation: str = "bicubic", pad: str = "zero"
) -> PIL.Image.Image:
    """A size x size RGB picture.

    Args:
        image: any mode, any size.
        size: side in pixels.
        resize, interpolation, pad: see `Pixels`.

    Raises:
        ValueError: unknown `resize`.
    """
    image = image.convert("RGB")
    side: float
    resize, _, first = resize.partition(":")
    between = PIL.Image.Resampling[interpolation.upper()]
    if image.size == (size, size) and resize != "targetpad" and not first:
        return image
    shorter = int(first or size)
    if resize == "squash":
        image = image.resize((shorter, shorter), between)
        return _centre(image, size) if first else image
    if resize == "pad":
        return _padded(image, size, between, pad)
    if resize == "targetpad":
        # CLIP4Cir: pad to an aspect ratio of at most 1.25, then crop as CLIP does.
        if max(image.size) / min(image.size) >= 1.25:
            side = max(image.size) / 1.25
            image = _pad(image, int(side), int(side), pad)
    elif resize != "crop":
        raise ValueError(f"unknown resize {resize!r}; one of crop, squash, pad, targetpad")
    # torchvision's Resize: the shorter side exactly, the longer one rounded down.
    width, height = (max(shorter, int(length * shorter / min(image.size))) for length in image.size)
    return _centre(image.resize((width, height), between), size)


def _centre(image: PIL.Image.Image, size: int) -> PIL.Image.Image:
    """torchvision's CenterCrop, which pads with zeros where the picture is smaller."""
    left, top = middle(image.width, size), middle(image.height, size)
    return image.crop((left, top, left + size, top + size))


class PixelStore:
    """Pictures of one image set under one transform, decoded once into a file of bytes (N, side, side, 3).

    Args:
        source: of the pictures.
        image_ids: of the pictures, in the order of the rows.
        pixels: the transform; pictures are normalised when read, not in the file.
        quiet: no progress bar.

    Raises:
        CirbenchError: an unreadable picture, or too little disk.
    """

    def __init__(self, source: ImageSource, image_ids: Sequence[str], pixels: Pixels, quiet: bool = True) -> None:
        self.pixels, self.rows = pixels, {image_id: row for row, image_id in enumerate(image_ids)}
        side = pixels.side
        padded = [] if pixels.pad == "zero" else [pixels.pad]  # so keys are as they were before there was a choice
        key = digest([
            source.fingerprint(image_ids), list(image_ids), side, pixels.resize, pixels.interpolation,
            numerics.of_part("pictures"), numerics.of_class(type(source)), *padded,
        ])
        path = cache_dir() / "pixels" / f"{key[:32]}.npy"
        shape = (len(image_ids), side, side, 3)
        kept = usable(path, shape, np.dtype(np.uint8), mapped=True)
        if kept is None:
            with alone(path):
                kept = usable(path, shape, np.dtype(np.uint8), mapped=True)
                if kept is None:
                    self._decode(source, image_ids, path, quiet)
                    kept = np.load(path, mmap_mode="r")
        self.bytes = kept

    def _decode(self, source: ImageSource, image_ids: Sequence[str], path: Path, quiet: bool) -> None:
        side, wanted = self.pixels.side, self.pixels
        needed = len(image_ids) * side * side * 3
        with writing(path, needed, ELSEWHERE) as temporary:
            out = np.lib.format.open_memmap(temporary, "w+", np.uint8, (len(image_ids), side, side, 3))
            allocate(temporary)

            def one(row: int) -> None:
                with source.open(image_ids[row]) as image:
                    out[row] = np.asarray(resized(image, side, wanted.resize, wanted.interpolation, wanted.pad))

            with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
                jobs = pool.map(one, range(len(image_ids)))
                for _ in tqdm(jobs, total=len(image_ids), desc="decoding pictures", disable=quiet, leave=False):
                    pass
            out.flush()

    def __call__(
        self, image_ids: Sequence[str], flip: np.ndarray | None = None, crops: Crops | None = None,
        device: torch.device | None = None,
    ) -> Tensor:
        """(B, 3, size, size) float32, normalised, channels last in memory.

        Pictures travel as bytes, a quarter of what their numbers take, and are normalised where they are used.

        Args:
            image_ids: B pictures.
            flip: (B,) bool, which of them are mirrored, after they were cut.
            crops: how they are cut from what is stored; None for the centre.
            device: of the result.
        """
        rows = np.fromiter((self.rows[i] for i in image_ids), np.int64, len(image_ids))
        side, size = self.pixels.side, self.pixels.size
        if crops is not None and (crops.kind == "resized" or side > size):
            block = self._cut(rows, crops.boxes(side, size))
        elif side > size:
            start = middle(side, size)
            block = np.ascontiguousarray(self.bytes[rows, start : start + size, start : start + size])
        else:
            block = self.bytes[rows]
        if flip is not None and flip.any():
            block[flip] = block[flip, :, ::-1]
        return normalised(block, self.pixels, device)

    def _cut(self, rows: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """(B, size, size, 3) bytes of these boxes (B, 4), resized where they have another size."""
        size = self.pixels.size
        between = PIL.Image.Resampling[self.pixels.interpolation.upper()]
        block = np.empty((len(rows), size, size, 3), np.uint8)
        for n, (row, (top, left, height, width)) in enumerate(zip(rows, boxes.tolist(), strict=True)):
            part = np.ascontiguousarray(self.bytes[row, top : top + height, left : left + width])
            same = (height, width) == (size, size)
            block[n] = part if same else np.asarray(PIL.Image.fromarray(part).resize((size, size), between))
        return block


def normalised(block: np.ndarray, wanted: Pixels, device: torch.device | None = None) -> Tensor:
    """(B, size, size, 3) bytes -> (B, 3, size, size) float32 on a device, channels last in memory."""
    x = sent(torch.from_numpy(block), device).permute(0, 3, 1, 2).to(torch.float32)
    mean, std = _statistics(tuple(wanted.mean), tuple(wanted.std), x.device)
    return x.sub_(mean).div_(std)


@lru_cache
def _statistics(
    mean: tuple[float, float, float], std: tuple[float, float, float], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Of bytes, (1, 3, 1, 1) each, on a device once: a copy to it would be waited for at every batch."""
    one, two = (torch.tensor(values).view(1, 3, 1, 1) * 255 for values in (mean, std))
    return one.to(device), two.to(device)


def sent(x: Tensor, device: torch.device | None) -> Tensor:
    """A tensor of the host on a device; to CUDA by way of pinned memory, without waiting for it."""
    if device is None or device.type == "cpu":
        return x
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def webp(image: PIL.Image.Image, side: int = 96) -> bytes:
    """A small WebP for reports; the longer side is at most `side` pixels."""
    import io

    image = image.convert("RGB")
    image.thumbnail((side, side), PIL.Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=72, method=4)
    return buffer.getvalue()


def image_set_fingerprint(source: ImageSource, image_ids: Sequence[str]) -> str:
    """Fingerprint of an image set, independent of the order of its ids."""
    return digest([json.dumps(sorted(image_ids)), source.fingerprint(sorted(image_ids))])
