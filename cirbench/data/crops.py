"""Cuts of training pictures: where, as a function of the seed, the epoch and the step alone.

`random` keeps the size: `size` pixels somewhere in the larger picture that is stored. `resized` is torchvision's
RandomResizedCrop, of the square picture that is stored: a share of its area, uniform in `scale`, and a ratio of width
to height, log-uniform in 3/4 to 4/3; what does not fit is drawn again, and after ten times the picture is taken whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cirbench.seeds import derive
from cirbench.types import CirbenchError, Frozen, Inputs, Pixels

__all__ = ["TRIES", "Crops", "check_crop", "crop_note", "drawn", "middle"]

#: How often a box is drawn that does not fit.
TRIES = 10
RATIO = (3 / 4, 4 / 3)


def middle(side: int, size: int) -> int:
    """Where `size` pixels in the middle of `side` begin, rounded as torchvision's CenterCrop does."""
    return round((side - size) / 2.0)


@dataclass(frozen=True)
class Crops:
    """How B pictures are cut.

    Attributes:
        kind: `random` or `resized`.
        draws: (B, TRIES, 4) uniform in [0, 1): area, ratio, top, left. Fractions, so that every input of a picture is
            cut at the same place, whatever its size.
        scale: smallest and largest share of the area, `resized` alone.
    """

    kind: str
    draws: np.ndarray
    scale: tuple[float, float] = (0.75, 1.33)

    def boxes(self, side: int, size: int) -> np.ndarray:
        """(B, 4) int64: top, left, height, width in pictures of `side` pixels, of which `size` are read."""
        if self.kind == "random":
            height = width = np.full(len(self.draws), size)
            top, left = self.draws[:, 0, 2], self.draws[:, 0, 3]
        else:
            height, width, top, left = self._shares(side)
        places = [np.floor(u * (side - length + 1)).astype(np.int64) for u, length in ((top, height), (left, width))]
        return np.stack([*places, height, width], 1)

    def _shares(self, side: int) -> tuple[np.ndarray, ...]:
        """Height, width, and the draws of top and left, each (B,)."""
        low, high = self.scale
        area = low + (high - low) * self.draws[..., 0]
        edges = [math.log(r) for r in RATIO]
        ratio = np.exp(edges[0] + (edges[1] - edges[0]) * self.draws[..., 1])
        # What fits is decided before rounding, so that inputs of different sides take the same draw.
        width, height = np.sqrt(area * ratio), np.sqrt(area / ratio)
        fits = (width <= 1) & (height <= 1)
        first, rows = fits.argmax(1), np.arange(len(fits))
        lengths = [
            np.where(fits[rows, first], np.maximum(np.rint(side * x[rows, first]), 1), side).astype(np.int64)
            for x in (height, width)
        ]
        return *lengths, self.draws[rows, first, 2], self.draws[rows, first, 3]


def drawn(
    kind: str, scale: tuple[float, float], seed: int, epoch: int, step: int, count: int
) -> tuple[Crops, Crops] | tuple[None, None]:
    """The cuts of B references and of their B targets at one step, each picture by itself; None without cuts."""
    if kind == "none":
        return None, None
    rng = np.random.Generator(np.random.PCG64(derive(seed, "crops", epoch, step)))
    reference, target = rng.random((2, count, TRIES, 4))
    return Crops(kind, reference, scale), Crops(kind, target, scale)


def crop_note(kind: str, inputs: Inputs) -> str:
    """A sentence for the record where some inputs are cut in training and others cannot be; else ""."""
    whole = [name for name, wanted in inputs.images.items() if isinstance(wanted, Frozen)]
    return f"train.crop={kind}: frozen features ({', '.join(whole)}) are of whole pictures." if whole else ""


def check_crop(kind: str, inputs: Inputs) -> None:
    """Refuse cuts that would change nothing.

    Raises:
        CirbenchError: no input of a picture can be cut; what to set.
    """
    pixels: Mapping[str, Pixels] = {n: w for n, w in inputs.images.items() if isinstance(w, Pixels)}
    if kind == "none" or any(kind == "resized" or w.side > w.size for w in pixels.values()):
        return
    frozen = [name for name, wanted in inputs.images.items() if isinstance(wanted, Frozen)]
    if not pixels:
        raise CirbenchError(
            f"train.crop={kind}: the method reads frozen features ({', '.join(frozen) or 'of no picture'}), which are "
            "computed once, of whole pictures, and cannot be cut. Set train.crop=none, or train the pictures' encoder."
        )
    sides = ", ".join(f"{name}: {wanted.size} pixels" for name, wanted in pixels.items())
    raise CirbenchError(
        f"train.crop={kind}: the method keeps no larger picture to cut from ({sides}). Give an input room, "
        "Pixels(size, mean, std, stored=S) with S > size, or set train.crop=resized or none."
    )
