"""Several methods as one: their scores added, or the ranks that they give.

Of scores, each method's are divided by their spread, so that shares are comparable; of ranks, 1 / (60 + rank) is added
up (reciprocal-rank fusion; Cormack, Clarke and Buettcher, SIGIR 2009).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from cirbench.scoring.adapting import Adapt
from cirbench.scoring.ranking import Score, dot
from cirbench.types import Frozen, Inputs, Method, Pixels, QueryBatch

__all__ = ["DEPTH", "Fused", "shares_of"]

#: The constant of reciprocal-rank fusion, and the rank of a list behind which an image adds nothing.
CONSTANT, DEPTH = 60, 1000
#: Scores of one image differ by about this when they are computed in blocks of another shape.
ROUNDING = 1e-5
#: Gallery images and queries that are scored at once where ranks are looked up.
BLOCK = 512


class Fused(nn.Module):
    """A method whose score is made of other methods' scores.

    Its embeddings are theirs side by side, so that it is encoded, ranked and recorded as any method is.

    Args:
        members: the methods, with their weights.
        how: `scores` or `ranks`.
        weights: share of each, adding up to 1.
    """

    def __init__(self, members: Sequence[Method], how: str, weights: Sequence[float]) -> None:
        super().__init__()
        self.members, self.how, self.weights = list(members), how, list(weights)
        self.kept = nn.ModuleList(m for m in members if isinstance(m, nn.Module))
        self.spread = [1.0] * len(self.members)
        self._widths: dict[str, list[int]] = {}
        images: dict[str, Pixels | Frozen] = {}
        texts: dict[str, Frozen] = {}
        for n, member in enumerate(self.members):
            images |= {f"{n}/{name}": wanted for name, wanted in member.inputs.images.items()}
            texts |= {f"{n}/{name}": wanted for name, wanted in member.inputs.texts.items()}
        self.inputs = Inputs(images, texts)
        if how == "ranks" or any(hasattr(m, "adapt") for m in self.members):
            self.adapt = self._adapt

    def _own(self, n: int, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name.partition("/")[2]: x for name, x in given.items() if name.partition("/")[0] == str(n)}

    def _beside(self, kind: str, parts: Sequence[Tensor]) -> Tensor:
        self._widths[kind] = [part.shape[1] for part in parts]
        return torch.cat([part.float() for part in parts], 1)

    def encode_queries(self, batch: QueryBatch) -> Tensor:
        """(B, D1 + D2 + ...)."""
        return self._beside("queries", [
            m.encode_queries(QueryBatch(self._own(n, batch.reference), self._own(n, batch.text), batch.words))
            for n, m in enumerate(self.members)
        ])

    def encode_images(self, images: Mapping[str, Tensor]) -> Tensor:
        """(N, D1 + D2 + ...)."""
        return self._beside("images", [m.encode_images(self._own(n, images)) for n, m in enumerate(self.members)])

    def split(self, kind: str, x: Tensor) -> Sequence[Tensor]:
        """Each method's columns of `queries` or `images`; of adapted queries by "adapted"."""
        return x.split(self._widths[kind], 1)

    def _scores(self) -> Iterator[Score]:
        return (getattr(m, "score", dot) for m in self.members)

    def _adapt(self, queries: Tensor, gallery: Tensor) -> Tensor:
        """Queries as each method adapts them; with `ranks` also each method's first scores, best first."""
        pictures = self.split("images", gallery)
        parts = []
        for member, q, g in zip(self.members, self.split("queries", queries), pictures, strict=True):
            adapt = cast(Adapt | None, getattr(member, "adapt", None))
            parts.append(q if adapt is None else adapt(q, g))
        lists = []
        if self.how == "ranks":
            depth = min(DEPTH, len(gallery))
            for score, q, g in zip(self._scores(), parts, pictures, strict=True):
                found = [_first(score, rows, g, depth) for rows in q.split(BLOCK)]
                lists.append(torch.cat(found) if found else q.new_zeros((0, depth)))
        return self._beside("adapted", [*parts, *lists])

    def score(self, queries: Tensor, gallery: Tensor) -> Tensor:
        """(B, D), (N, D') -> (B, N)."""
        count = len(self.members)
        columns = self.split("adapted" if hasattr(self, "adapt") else "queries", queries)
        out = queries.new_zeros((len(queries), len(gallery)))
        for n, (score, g) in enumerate(zip(self._scores(), self.split("images", gallery), strict=True)):
            if not self.weights[n]:
                continue
            found = score(columns[n], g).float()
            if self.how == "ranks":
                best = columns[count + n]
                # Ascending for the search: how many of the first scores are better than this one.
                rising = best.flip(1).contiguous()
                slack = ROUNDING * found.abs().clamp(min=1)
                better = best.shape[1] - torch.searchsorted(rising, found + slack, right=False)
                out += self.weights[n] * torch.where(better < best.shape[1], 1.0 / (CONSTANT + 1 + better), 0.0)
            else:
                out += (self.weights[n] / self.spread[n]) * found
        return out

    def measure_spread(self, queries: Tensor, gallery: Tensor) -> None:
        """Take the standard deviation of each method's scores of (B, D) queries over the (N, D) gallery."""
        columns = self.split("queries", queries)
        if hasattr(self, "adapt"):
            columns = self.split("adapted", self._adapt(queries, gallery))
        for n, (score, g) in enumerate(zip(self._scores(), self.split("images", gallery), strict=True)):
            # Some rows and images tell it well enough, whatever their number.
            found = score(columns[n][:BLOCK], g[:: max(len(g) // 4096, 1)])
            self.spread[n] = max(float(found.double().std()), 1e-12)


def _first(score: Score, queries: Tensor, gallery: Tensor, depth: int) -> Tensor:
    """(B, depth) best scores of a gallery, best first."""
    found = torch.cat([score(queries, part).float() for part in gallery.split(16 * BLOCK)], 1)
    return found.topk(depth, dim=1).values


def shares_of(members: int, steps: int) -> list[tuple[float, ...]]:
    """All shares of so many methods in steps of 1 / `steps`, equal ones or the nearest to them first.

    >>> shares_of(2, 2)
    [(0.5, 0.5), (0.0, 1.0), (1.0, 0.0)]
    """
    def parts(left: int, count: int) -> Iterator[tuple[int, ...]]:
        if count == 1:
            yield (left,)
            return
        for first in range(left + 1):
            for rest in parts(left - first, count - 1):
                yield (first, *rest)

    found = [tuple(n / steps for n in whole) for whole in parts(steps, members)]
    return sorted(found, key=lambda shares: (round(sum((s - 1 / members) ** 2 for s in shares), 9), shares))
