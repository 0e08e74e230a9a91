"""Frozen features, computed once and kept on disk.

The key holds what can change a feature: the weights, the code of the encoder, the kind of device and on a CPU the
number of threads and the instruction set, the input size, transform and statistics, the pictures themselves (their
fingerprint, and the code that decodes them) or the strings, and whether pictures were mirrored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from cirbench import numerics
from cirbench.data.cache import alone, cache_dir, keep, usable
from cirbench.data.images import PixelStore
from cirbench.seeds import digest
from cirbench.types import Encoder, ImageSource

BATCH = 256


def _place(encoder: Encoder, *key: object) -> Path:
    # A GPU (TF32), another number of threads or another instruction set rounds products differently: a run must get
    # what it would have computed itself.
    device = next(encoder.parameters()).device.type
    cpu = [torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()]
    where = [device, *(cpu if device == "cpu" else [])]
    code = [numerics.of_part("encoders"), numerics.of_class(type(encoder))]
    return cache_dir() / "features" / f"{digest([encoder.key, where, code, *key])[:32]}.npy"


def _kept(path: Path, rows: int) -> np.ndarray | None:
    return usable(path, (rows, None), np.dtype(np.float32))


def _once(path: Path, rows: int, make: Callable[[], np.ndarray]) -> np.ndarray:
    """The array cached at `path`; if it is missing, one process makes it and the others wait."""
    kept = _kept(path, rows)
    if kept is not None:
        return kept
    with alone(path):
        kept = _kept(path, rows)
        if kept is None:
            kept = make()
            keep(path, kept)
    return kept


def _in_batches(rows: int, what: str, quiet: bool, encode: Callable[[slice], Tensor]) -> np.ndarray:
    parts = []
    with torch.inference_mode():
        for start in tqdm(range(0, rows, BATCH), desc=what, disable=quiet, leave=False):
            parts.append(encode(slice(start, min(start + BATCH, rows))).float().cpu().numpy())
    return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)


def _image_features(
    encoder: Encoder, pixels: Callable[[], PixelStore], image_ids: Sequence[str], mirrored: bool, quiet: bool
) -> np.ndarray:
    device, store = next(encoder.parameters()).device, pixels()

    def encode(rows: slice) -> Tensor:
        ids = image_ids[rows]
        # A batch of one fixed shape: a product of another shape may round differently in its last bit.
        padded = [*ids, *([ids[0]] * (BATCH - len(ids)))] if len(image_ids) > BATCH else list(ids)
        flip = np.ones(len(padded), bool) if mirrored else None
        return encoder.encode_images(store(padded, flip).to(device))[: len(ids)]

    return _in_batches(len(image_ids), "image features", quiet, encode)


class FeatureStore:
    """Image features of one frozen encoder for one image set, in one or both orientations.

    Args:
        encoder: the encoder.
        source, image_ids: the pictures, in the order of the rows.
        mirrored: keep features of the mirrored pictures as well, for training with flips.
        quiet: no progress bar.
    """

    def __init__(
        self, encoder: Encoder, source: ImageSource, image_ids: Sequence[str], mirrored: bool = False,
        quiet: bool = True,
    ) -> None:
        self.rows = {image_id: row for row, image_id in enumerate(image_ids)}
        code = [numerics.of_part("pictures"), numerics.of_class(type(source))]
        key = digest([source.fingerprint(image_ids), list(image_ids), repr(encoder.pixels), code])

        def pixels() -> PixelStore:
            """Called only if a feature is missing: then pictures are decoded, or read from their cache."""
            return PixelStore(source, image_ids, encoder.pixels, quiet)

        self.tables = []
        for orientation in (False, True) if mirrored else (False,):
            path = _place(encoder, "images", key, orientation)
            make = partial(_image_features, encoder, pixels, image_ids, orientation, quiet)
            self.tables.append(torch.from_numpy(_once(path, len(image_ids), make)))

    def __call__(self, image_ids: Sequence[str], flip: np.ndarray | None = None) -> Tensor:
        """(B, D) float32; `flip` (B,) takes the mirrored picture's."""
        rows = torch.tensor([self.rows[i] for i in image_ids], dtype=torch.int64)
        plain = self.tables[0][rows]
        if flip is None or not flip.any():
            return plain
        return torch.where(torch.from_numpy(flip)[:, None], self.tables[1][rows], plain)


class TextStore:
    """Text features of one frozen encoder for a list of strings."""

    def __init__(self, encoder: Encoder, texts: Sequence[str], quiet: bool = True) -> None:
        unique = list(dict.fromkeys(texts))
        self.rows = {text: row for row, text in enumerate(unique)}
        path = _place(encoder, "texts", unique)
        array = _once(path, len(unique), lambda: _in_batches(
            len(unique), "text features", quiet, lambda rows: encoder.encode_texts(unique[rows])
        ))
        self.table = torch.from_numpy(array)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """B strings -> (B, D) float32."""
        return self.table[torch.tensor([self.rows[text] for text in texts], dtype=torch.int64)]
