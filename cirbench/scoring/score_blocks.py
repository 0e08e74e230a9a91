"""Scores of a block of queries against the gallery, block by block, and those of single pairs ahead of the rest.

Every score is read from a product of one shape, so that equal embeddings get equal scores at any position in the
gallery, and ties are exact. For the same reason the score of a target is known before its block is reached: the
product with a block that is filled with the targets' embeddings has the same shape, so it gives the same bits. That is
looked at again when the block itself comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from cirbench.types import CirbenchError, MethodError

#: Block shape (queries, gallery images). Fixed, and the last blocks are padded to it: a product of another shape may
#: round differently in its last bit, which would break ties by position.
BLOCK = (256, 4096)
#: Up to this many gallery images dot products are computed once and kept; above it only the targets' come first.
KEEP = 1 << 14
#: The same for a method's own score, of which nothing is known but what it returned.
KEEP_OWN = 1 << 18

Score = Callable[[Tensor, Tensor], Tensor]


def dot(queries: Tensor, gallery: Tensor) -> Tensor:
    """(B, D), (N, D) -> (B, N), higher is better."""
    return queries @ gallery.T


def padded(x: Tensor, rows: int) -> Tensor:
    """x, (n, ...), filled up to (rows, ...) with zeros."""
    if x.shape[0] == rows:
        return x
    return torch.cat([x, x.new_zeros((rows - x.shape[0], *x.shape[1:]))])


def may_be_nan(queries: Tensor, gallery: Tensor) -> bool:
    """Whether dot products of finite embeddings may overflow, after which infinities may meet.

    Raises:
        CirbenchError: NaN among the embeddings.
    """
    if not len(queries) or not len(gallery) or not queries.shape[1]:
        return False
    # NaN passes through both ends; two reductions for the whole check, and one read by the host.
    ends = torch.stack([*torch.aminmax(queries), *torch.aminmax(gallery)]).double().abs().cpu()
    if bool(ends.isnan().any()):
        raise CirbenchError("NaN among the embeddings, which cannot be ranked.")
    bound = float(ends[:2].max()) * float(ends[2:].max()) * queries.shape[1]
    return not bound < torch.finfo(queries.dtype).max


class Pairs:
    """Single (row, image) pairs of a block of queries whose scores are wanted, each once.

    Args:
        rows: of the pairs, any number of times.
        images: of the pairs.
        device: of the scores.

    Attributes:
        rows, images: of the P different pairs, ordered by image.
        scores: (P,), set by `Scores.fill`.
    """

    def __init__(self, rows: np.ndarray, images: np.ndarray, device: torch.device) -> None:
        key = np.unique(images.astype(np.int64) * BLOCK[0] + rows)
        self._key = key
        self.images, self.rows = key // BLOCK[0], key % BLOCK[0]
        self.at, self.own = torch.from_numpy(self.images).to(device), torch.from_numpy(self.rows).to(device)
        self.scores = torch.zeros(0)

    def find(self, rows: np.ndarray, images: np.ndarray) -> np.ndarray:
        """Places of pairs among the P."""
        return np.searchsorted(self._key, images.astype(np.int64) * BLOCK[0] + rows)

    def within(self, start: int, stop: int) -> slice:
        """Which pairs have images from `start` to `stop`."""
        first, last = np.searchsorted(self.images, [start, stop])
        return slice(int(first), int(last))

    def of_block(self, start: int, block: Tensor) -> tuple[slice, Tensor]:
        """The pairs of a block of the gallery, and their scores in it."""
        part = self.within(start, start + block.shape[1])
        return part, block[self.own[part], self.at[part] - start]


class Scores:
    """Scores of one block of queries against the gallery, block by block, equal on every iteration.

    Args:
        queries: (B, D), at most BLOCK[0].
        gallery: (N, D).
        score: of the method, or `dot`.
        nan: whether NaN may occur where no embedding is NaN.
    """

    def __init__(self, queries: Tensor, gallery: Tensor, score: Score, nan: bool = True) -> None:
        self.count, self.gallery, self.score = queries.shape[0], gallery, score
        # A dot product does not depend on other rows; a method's own score may, so it gets only real rows.
        self.own = score is not dot
        self.queries = queries if self.own else padded(queries, BLOCK[0])
        self.kept: list[Tensor] | None = [] if gallery.shape[0] <= (KEEP_OWN if self.own else KEEP) else None
        self.nan = nan or self.own
        self.buffer: Tensor | None = None

    def _product(self, images: Tensor) -> Tensor:
        """(BLOCK) dot products; where they are not kept, in the same memory every time."""
        if self.kept is None and self.buffer is None:
            self.buffer = self.queries.new_empty(BLOCK[0], images.shape[0])
        return torch.mm(self.queries, images.T, out=self.buffer) if self.kept is None else dot(self.queries, images)

    def _block(self, start: int) -> Tensor:
        """(B, <= BLOCK[1]) scores of the gallery images from `start`."""
        width = BLOCK[1]
        part = self.gallery[start : start + width]
        if not self.own:
            return self._product(padded(part, width))[: self.count, : part.shape[0]]
        # The last block is shifted back instead, so that rows scored before fill it up to the fixed shape.
        before = min(start, width - part.shape[0])
        return checked(self.score, self.queries, self.gallery[start - before : start + width])[:, before:]

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """(first column, (B, <= BLOCK[1]) scores) in gallery order; a block may be overwritten by the next."""
        width = BLOCK[1]
        for index, start in enumerate(range(0, self.gallery.shape[0], width)):
            if self.kept is not None and index < len(self.kept):
                yield start, self.kept[index]
                continue
            block = self._block(start)
            if self.nan and bool(block.isnan().any()):  # comparisons with NaN are false: it would rank after everything
                told = (
                    f"NaN among the scores of gallery images {start} to {start + block.shape[1] - 1}, which cannot be "
                    "ranked. Do embeddings overflow, or does the method's `score` divide by zero?"
                )
                raise MethodError(self.score, told) if self.own else CirbenchError(told)
            if self.kept is not None:
                self.kept.append(block)
            yield start, block

    def fill(self, pairs: Pairs, in_place: bool = False) -> None:
        """Set the scores of pairs, from blocks of their own images or, `in_place`, from the gallery's blocks."""
        pairs.scores = self.queries.new_zeros(len(pairs.at))
        if in_place or self.own or self.kept is not None:
            for start, block in self.blocks():
                if self.own:
                    pairs.scores = pairs.scores.to(block.dtype)
                part, found = pairs.of_block(start, block)
                pairs.scores[part] = found
            return
        images, column = np.unique(pairs.images, return_inverse=True)
        for start in range(0, len(images), BLOCK[1]):
            chosen = torch.from_numpy(images[start : start + BLOCK[1]]).to(self.gallery.device)
            block = self._product(padded(self.gallery[chosen], BLOCK[1]))
            first, last = np.searchsorted(column, [start, start + len(chosen)])  # pairs are ordered by image
            places = torch.from_numpy(column[first:last] - start).to(block.device)
            pairs.scores[first:last] = block[pairs.own[first:last], places]


def checked(score: Score, queries: Tensor, gallery: Tensor) -> Tensor:
    """The result of a method's own `score` for (B, D) queries and (n, D) gallery images, checked.

    Raises:
        CirbenchError: not a floating-point tensor of shape (B, n).
    """
    found, wanted = score(queries, gallery), (queries.shape[0], gallery.shape[0])
    good = isinstance(found, Tensor) and found.is_floating_point() and tuple(found.shape) == wanted
    good = good and found.layout == torch.strided and found.device == queries.device
    if good and wanted[0] == wanted[1] > 1:
        # A square shape cannot show a transposed result; a single query can.
        good = tuple(score(queries[:1], gallery).shape) == (1, wanted[1])
    if not good:
        received = type(found).__name__
        if isinstance(found, Tensor):
            received = f"{found.dtype} of shape {tuple(found.shape)} on {found.device}"
        raise MethodError(
            score, f"the method's `score` returned {received} for {wanted[0]} queries and {wanted[1]} gallery images. "
            f"It must return a floating-point tensor of shape (B, N) = {wanted}, one row per query."
        )
    return found
