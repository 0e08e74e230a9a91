"""Ranks by the definition in two passes: the targets' scores are read in place, then every view is counted by masks.

What `cirbench.scoring.ranking` must equal to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from cirbench.scoring.ranking import Ranks, Score, View, checked, dot, joined

#: Block shape (queries, gallery images). Fixed, and the last blocks are padded to it: a product of another shape may
#: round differently in its last bit, which would break ties by position.
BLOCK = (256, 4096)
#: Up to this many gallery images the scores of a block of queries are kept between the two passes.
KEEP = 1 << 18


def _padded(x: Tensor, rows: int) -> Tensor:
    if x.shape[0] == rows:
        return x
    return torch.cat([x, x.new_zeros((rows - x.shape[0], *x.shape[1:]))])


class _Scores:
    """Scores of one block of queries against the gallery, block by block, equal on every iteration."""

    def __init__(self, queries: Tensor, gallery: Tensor, score: Score) -> None:
        self.count, self.gallery, self.score = queries.shape[0], gallery, score
        # A dot product does not depend on other rows; a method's own score may, so it gets only real rows.
        self.padded = score is dot
        self.queries = _padded(queries, BLOCK[0]) if self.padded else queries
        self.kept: list[Tensor] | None = [] if gallery.shape[0] <= KEEP else None

    def _block(self, start: int) -> Tensor:
        """(B, <= BLOCK[1]) scores of the gallery images from `start`."""
        width = BLOCK[1]
        part = self.gallery[start : start + width]
        if self.padded:
            return self.score(self.queries, _padded(part, width))[: self.count, : part.shape[0]]
        # The last block is shifted back instead, so that rows scored before fill it up to the fixed shape.
        before = min(start, width - part.shape[0])
        return checked(self.score, self.queries, self.gallery[start - before : start + width])[:, before:]

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """(first column, (B, <= BLOCK[1]) scores) in gallery order."""
        width = BLOCK[1]
        for index, start in enumerate(range(0, self.gallery.shape[0], width)):
            if self.kept is not None and index < len(self.kept):
                yield start, self.kept[index]
                continue
            block = self._block(start)
            if self.kept is not None:
                self.kept.append(block)
            yield start, block


def _flat(targets: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Ragged positions -> (row of each, position of each)."""
    sizes = np.array([len(t) for t in targets], dtype=np.int64)
    rows = np.repeat(np.arange(len(targets)), sizes)
    return rows, np.concatenate([np.asarray(t, dtype=np.int64) for t in targets]) if len(rows) else rows


def _allowed(view: View, rows: slice, start: int, stop: int, device: torch.device) -> Tensor | None:
    if view.members is None:
        return None
    assert view.member_of is not None
    part = torch.from_numpy(np.ascontiguousarray(view.members[:, start:stop])).to(device)
    return part[torch.from_numpy(view.member_of[rows].astype(np.int64)).to(device)]


def _at_least(block: Tensor, counted: Tensor, own: Tensor, place: Tensor, target_scores: Tensor) -> Tensor:
    """(T,) how many counted images of a block score at least as much as each target, by binary search in sorted rows.

    Args:
        block: (B, n) scores, minus infinity where an image does not count.
        counted: (B,) how many images count.
        own: (T,) row of each target.
        place: (T,) which target of its row it is.
        target_scores: (T,).
    """
    wanted = block.new_full((block.shape[0], int(place.max()) + 1 if len(place) else 1), torch.inf)
    wanted[own, place] = target_scores
    below = torch.searchsorted(block.sort(dim=1).values, wanted)[own, place]
    # A target score of minus infinity would count the excluded images as well.
    return torch.where(target_scores == -torch.inf, counted[own], block.shape[1] - below)


def _rank_block(scores: _Scores, view: View, rows: slice) -> tuple[np.ndarray, np.ndarray, list[np.ndarray] | None]:
    """Ranks of one block of rows: gather the targets' scores, then count the images ranked before them."""
    device, count = scores.queries.device, scores.count
    owner, position = _flat(view.targets[rows])
    dropped = torch.from_numpy(view.dropped[rows].astype(np.int64)).to(device)
    present = position != view.dropped[rows][owner]
    if view.members is not None:
        assert view.member_of is not None
        present &= view.members[view.member_of[rows][owner], position]
    owner_kept, position_kept = owner[present], position[present]
    own, at = torch.from_numpy(owner_kept).to(device), torch.from_numpy(position_kept).to(device)
    target_scores = torch.zeros(len(own), dtype=scores.queries.dtype, device=device)
    for start, block in scores.blocks():
        inside = (at >= start) & (at < start + block.shape[1])
        target_scores[inside] = block[own[inside], at[inside] - start]
    best = torch.full((count,), -torch.inf, dtype=target_scores.dtype, device=device)
    best.scatter_reduce_(0, own, target_scores, "amax")
    above = torch.zeros(count, dtype=torch.int64, device=device)
    ties = torch.zeros_like(above)
    # For ranks of every target: how many non-targets score at least as much as each of them.
    above_each = torch.zeros(len(own), dtype=torch.int64, device=device)
    place = torch.from_numpy(np.arange(len(owner_kept)) - np.searchsorted(owner_kept, owner_kept)).to(device)
    for start, block in scores.blocks():
        stop = start + block.shape[1]
        counted = torch.ones(block.shape, dtype=torch.bool, device=device)
        allowed = _allowed(view, rows, start, stop, device)
        if allowed is not None:
            counted &= allowed
        inside = (at >= start) & (at < stop)
        counted[own[inside], at[inside] - start] = False
        gone = (dropped >= start) & (dropped < stop)
        counted[gone.nonzero()[:, 0], dropped[gone] - start] = False
        above += ((block >= best[:, None]) & counted).sum(1)
        ties += ((block == best[:, None]) & counted).sum(1)
        if view.every_target:
            above_each += _at_least(block.masked_fill(~counted, -torch.inf), counted.sum(1), own, place, target_scores)
    found = torch.zeros(count, dtype=torch.bool, device=device)
    found[own] = True
    rank = torch.where(found, above + 1, 0).to(torch.int32).cpu().numpy()
    tied = torch.where(found, ties, 0).to(torch.int32).cpu().numpy()
    if not view.every_target:
        return rank, tied, None
    first = np.concatenate([[0], np.cumsum([len(t) for t in view.targets[rows]])])
    score, before = target_scores.cpu().numpy(), above_each.cpu().numpy()
    # Ranks among the targets themselves: by score, equal ones in the order given.
    order = np.lexsort((-score, owner_kept))
    among = np.empty(len(order), dtype=np.int64)
    among[order] = np.arange(len(order)) - np.searchsorted(owner_kept, owner_kept[order])
    ranks = np.zeros(len(owner), dtype=np.int32)
    ranks[present] = before + among + 1
    return rank, tied, np.split(ranks, first[1:-1])


def _top_block(scores: _Scores, view: View, rows: slice, k: int) -> tuple[Tensor, Tensor]:
    """(B, k) positions and scores, best first, equal scores by position; -1 past the end."""
    device = scores.queries.device
    values = torch.empty((scores.count, 0), dtype=scores.queries.dtype, device=device)
    index = torch.empty((scores.count, 0), dtype=torch.int64, device=device)
    dropped = torch.from_numpy(view.dropped[rows].astype(np.int64)).to(device)
    for start, block in scores.blocks():
        stop = start + block.shape[1]
        block = block.clone()
        allowed = _allowed(view, rows, start, stop, device)
        if allowed is not None:
            block[~allowed] = -torch.inf
        gone = (dropped >= start) & (dropped < stop)
        block[gone.nonzero()[:, 0], dropped[gone] - start] = -torch.inf
        values = torch.cat([values, block], 1)
        index = torch.cat([index, torch.arange(start, stop, device=device).expand(scores.count, -1)], 1)
        keep = min(k, values.shape[1])
        kth = values.topk(keep, 1).values[:, -1:]
        if bool(((values >= kth).sum(1) > keep).any()):
            # Several images tie for the last place: a stable sort keeps the first of them by position.
            order = values.sort(dim=1, descending=True, stable=True).indices[:, :keep]
        else:
            order = values.topk(keep, 1).indices
        # Back into gallery order, so that later stable sorts see positions ascending.
        order = order.sort(1).values
        values, index = values.gather(1, order), index.gather(1, order)
    order = values.sort(dim=1, descending=True, stable=True).indices
    values, index = values.gather(1, order), index.gather(1, order)
    index = torch.where(values == -torch.inf, -1, index)
    missing = k - index.shape[1]
    index = torch.nn.functional.pad(index, (0, missing), value=-1)
    return index, torch.nn.functional.pad(values, (0, missing), value=-torch.inf)


def rank(
    queries: Tensor, gallery: Tensor, views: Sequence[View], score: Score = dot, top: int = 0, top_view: int = 0
) -> tuple[list[Ranks], np.ndarray, np.ndarray]:
    """As `cirbench.scoring.ranking.rank`."""
    ended, firsts = [], []
    for start in range(0, queries.shape[0], BLOCK[0]):
        rows = slice(start, min(start + BLOCK[0], queries.shape[0]))
        scores = _Scores(queries[rows], gallery, score)
        ended.append([_rank_block(scores, view, rows) for view in views])
        if top:
            firsts.append(_top_block(scores, views[top_view], rows, top))
    return joined(ended, views, firsts, top)
