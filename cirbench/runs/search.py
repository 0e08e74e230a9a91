"""A trained method asked about one's own photographs: a picture and a change, and the nearest pictures of a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from cirbench.data.file_hashes import file_sha256
from cirbench.data.photos import encoder_inputs
from cirbench.runs.approximate import Approximate
from cirbench.runs.blame import blaming
from cirbench.runs.building import load_method
from cirbench.runs.evaluate_run import plan_eval
from cirbench.runs.training import pick_device
from cirbench.scoring import evaluation
from cirbench.scoring.adapting import checked_adapt
from cirbench.scoring.first_images import FirstImages
from cirbench.scoring.score_blocks import Score, checked, dot
from cirbench.seeds import digest
from cirbench.types import CirbenchError, Dataset, OptionalHooks, QueryBatch

__all__ = ["Hit", "Searcher", "first_of"]


#: Pictures whose scores are computed at once.
BLOCK = 1 << 16


@dataclass(frozen=True)
class Hit:
    """A picture of the gallery: its place (1 is best), its path in the folder, its score."""

    place: int
    path: str
    score: float


class _NoPictures:
    """The pictures of a dataset that is not there; a trained method needs none of them."""

    def open(self, image_id: str) -> PIL.Image.Image:
        raise CirbenchError(f"the picture {image_id!r} belongs to the dataset of the run, which is not loaded.")

    def fingerprint(self, image_ids: Sequence[str]) -> str:
        return ""

    def missing(self, image_ids: Sequence[str]) -> list[str]:
        return []


class Searcher:
    """The method of a finished run, without its dataset.

    Args:
        run: folder of the run.
        device: to compute on.

    Raises:
        CirbenchError: not a finished run, or weights that do not match.
    """

    def __init__(self, run: Path, device: str = "auto") -> None:
        self.device = pick_device(device)
        self.planned, self.record = plan_eval(run)
        weights = run / "model.safetensors"
        nothing = Dataset(self.planned.facts.name, {}, _NoPictures(), (), "")
        with blaming(self.planned.method):
            self.method = load_method(self.planned, nothing, weights, self.device)
        #: Of weights, settings and code.
        self.key = digest([file_sha256(weights), self.record.id])
        self.name = self.record.name

    def encode_images(self, images: Sequence[PIL.Image.Image]) -> Tensor:
        """B pictures -> (B, D)."""
        with blaming(self.planned.method), torch.inference_mode():
            inputs = encoder_inputs(self.method.inputs, images, self.device)
            return evaluation.encoded(self.method.encode_images, inputs, len(images)).float().cpu()

    def encode_query(self, image: PIL.Image.Image, text: str) -> Tensor:
        """A picture and a change -> (1, D)."""
        with blaming(self.planned.method), torch.inference_mode():
            texts = {
                name: wanted.encoder.to(self.device).encode_texts([text]).float()
                for name, wanted in self.method.inputs.texts.items()
            }
            batch = QueryBatch(encoder_inputs(self.method.inputs, [image], self.device), texts, [text])
            return evaluation.encoded(self.method.encode_queries, batch, 1).float().cpu()

    def search(
        self, query: Tensor, names: Sequence[str], gallery: Tensor, k: int, without: str = "",
        approximate: Approximate | None = None,
    ) -> list[Hit]:
        """The first k pictures.

        Args:
            query: (1, D), of `encode_query`.
            names: of the N pictures.
            gallery: (N, D).
            k: how many.
            without: a picture that is left out, the reference itself for example.
            approximate: an index to ask instead of every picture.

        Raises:
            CirbenchError: the method has a score of its own, which an approximate index does not know.
        """
        method: Any = self.method
        with blaming(self.planned.method), torch.inference_mode():
            if hasattr(method, "adapt"):
                query = checked_adapt(cast(OptionalHooks, method).adapt, query, gallery)
            if approximate is not None:
                if hasattr(method, "score"):
                    raise CirbenchError(
                        f"{self.planned.method.name} has a score of its own, and an approximate index knows dot "
                        "products only. Use --index flat."
                    )
                index, value = approximate.search(query, k + 1)
            else:
                # One more than asked for: the reference may be among them.
                index, value = first_of(query, gallery, k + 1, method.score if hasattr(method, "score") else dot)
        pairs = [(names[n], float(s)) for n, s in zip(index[0], value[0], strict=True) if n >= 0]
        left = [(name, score) for name, score in pairs if name != without][:k]
        return [Hit(place, name, score) for place, (name, score) in enumerate(left, 1)]


def first_of(queries: Tensor, gallery: Tensor, k: int, score: Score = dot) -> tuple[np.ndarray, np.ndarray]:
    """The first k images, without the padding that makes ranks of an evaluation exact: one query costs one reading.

    Args:
        queries: (B, D).
        gallery: (N, D), mapped from a file for example; a block of it is in memory at a time.
        k: how many.
        score: the dot product, or a method's own.

    Returns:
        (B, k) positions, best first, equal scores by position, -1 past the end; their scores.

    Raises:
        CirbenchError: a score that is NaN or of another shape.
    """
    first = FirstImages(len(queries), k, queries)
    for start in range(0, len(gallery), BLOCK):
        block = checked(score, queries, gallery[start : start + BLOCK]).to(queries.dtype)
        if bool(block.isnan().any()):
            raise CirbenchError(f"NaN among the scores of pictures {start} to {start + block.shape[1] - 1}.")
        first.offer(start, block)
    index, value = first.end()
    return index.cpu().numpy(), value.cpu().numpy()
