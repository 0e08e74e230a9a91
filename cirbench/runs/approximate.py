"""Approximate search with faiss, for galleries that outgrow exact search; its recall against exact search is measured.

`ivf` sorts the pictures into lists around centres and looks into a sixteenth of them; `hnsw` walks a graph of
neighbours. docs/scale.md says when either is worth it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cirbench.files import write_json
from cirbench.runs.record_lines import parse_json
from cirbench.scoring.ranking import View, rank
from cirbench.types import CirbenchError

__all__ = ["Approximate", "kept_note"]

#: Pictures of the gallery that ask for their neighbours when recall is measured, and how many neighbours.
SAMPLE, NEIGHBOURS = 200, 10


class Approximate:
    """An index of faiss over (N, D) embeddings by dot product.

    Args:
        kind: `ivf` or `hnsw`.
        gallery: (N, D).
        where: file that keeps it, or None.
        state: of the gallery: the file is used again as long as it is the same.

    Attributes:
        recall: share of the exact first ten among the ten found, over pictures of the gallery as queries, 0..1.

    Raises:
        CirbenchError: faiss is not installed.
    """

    def __init__(self, kind: str, gallery: Tensor, where: Path | None = None, state: str = "") -> None:
        self.faiss = _faiss(kind)
        note = where.with_suffix(".json") if where else None
        kept = kept_note(note) if note and where and where.is_file() else {}
        if where and kept.get("state") == state:
            self.index, self.recall = self.faiss.read_index(str(where)), float(kept["recall"])
            return
        table = _array(gallery)
        self.index = self._made(kind, *table.shape)
        if kind == "ivf":
            self.index.train(table)
        self.index.add(table)
        self.recall = self._recall(gallery)
        if where and note:
            note.unlink(missing_ok=True)
            self.faiss.write_index(self.index, str(where))
            write_json(note, {"state": state, "recall": self.recall})

    def _made(self, kind: str, count: int, dim: int) -> Any:
        if kind == "hnsw":
            graph = self.faiss.IndexHNSWFlat(dim, 32, self.faiss.METRIC_INNER_PRODUCT)
            graph.hnsw.efSearch = 128
            return graph
        # As many lists as faiss can find centres for: it asks for 39 pictures each.
        lists = max(1, min(int(2 * count**0.5), count // 39))
        index = self.faiss.IndexIVFFlat(self.faiss.IndexFlatIP(dim), dim, lists, self.faiss.METRIC_INNER_PRODUCT)
        # A quarter of the pictures and less than half the rounds that faiss takes, and of its time.
        index.cp.max_points_per_centroid, index.cp.niter = 64, 10
        index.nprobe = max(1, lists // 16)
        return index

    def search(self, queries: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(B, D) -> (B, k) positions, -1 where fewer were found, and their scores."""
        score, index = self.index.search(_array(queries), k)
        return index, score

    def _recall(self, gallery: Tensor) -> float:
        chosen = torch.from_numpy(np.linspace(0, len(gallery) - 1, min(SAMPLE, len(gallery))).astype(np.int64))
        queries, k = gallery[chosen], min(NEIGHBOURS, len(gallery))
        view = View([np.zeros(0, dtype=np.int64)] * len(queries), np.full(len(queries), -1))
        exact, found = rank(queries, gallery, [view], top=k)[1], self.search(queries, k)[0]
        shared = sum(len(np.intersect1d(a, b)) for a, b in zip(found, exact, strict=True))
        return shared / exact.size


def _faiss(kind: str) -> Any:
    try:
        import faiss
    except ImportError:
        raise CirbenchError(
            f"--index {kind} needs faiss: pip install 'cirbench[index]'. --index flat is exact and needs nothing."
        ) from None
    return faiss


def _array(x: Tensor) -> np.ndarray:
    return np.ascontiguousarray(x.cpu().numpy(), dtype=np.float32)


def kept_note(path: Path) -> dict[str, Any]:
    """What a small JSON file of an index says; nothing where it is not there or damaged, so that all is made anew."""
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
